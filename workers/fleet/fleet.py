"""The fleet: keeps as many workers and engines on a Ray cluster as the work needs. Read `Fleet.run` first."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError

from app.completions import service as completions_service
from app.core.database import Database, new_id
from app.core.settings import Settings
from app.fine_tuning import backlog
from app.models.catalogue import obtainable_names
from app.storage import open_storage
from workers.fleet.cluster import Cluster
from workers.fleet.engine_deployments import EngineDeployments
from workers.fleet.worker_pool import WorkerPool
from workers.maintenance import Maintenance
from workers.training.verification import verify_one
from workers.worker_locks import WorkerLocks

log = logging.getLogger("toque.fleet")

_AHEAD_SECONDS = 5.0
"""A worker is started so long before its job may be tried again."""


class Fleet:
    """Follows the database until it is told to stop; the workers and engines go on then."""

    def __init__(
        self, settings: Settings, cluster: Cluster, worker: Sequence[str], engine: Sequence[str]
    ) -> None:
        """`worker` and `engine` are the commands that run one until it is idle, and one."""
        self._settings = settings
        self._cluster = cluster
        self._database = Database(settings.sqlalchemy_url)
        self._storage = open_storage(settings)
        self._locks = WorkerLocks(settings.sqlalchemy_url, new_id("fleet_"))
        self._maintenance = Maintenance(
            settings, self._database, self._storage, self._locks, self._verify_one
        )
        self._workers = WorkerPool(cluster, worker, settings.fleet_workers)
        self._engines = EngineDeployments(cluster, settings, engine)
        self._said: dict[str, str] = {}
        self._stopping = threading.Event()

    def stop(self, *_: object) -> None:
        """Makes `run` return soon; serves as a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Keeps the fleet as large as the work needs, until `stop`."""
        log.info("the fleet follows jobs and requests")
        while not self._stopping.is_set():
            # Leases expire and models wait to be compared when no worker is there to see it.
            self._maintenance.run_maintenance()
            if self._nodes_are_usable():
                try:
                    self._follow()
                except SQLAlchemyError as error:
                    self._maintenance.database_was_away()
                    log.warning("the database is away, so the fleet stays as it is: %s", type(error).__name__)
            self._workers.wait(self._settings.poll_seconds)
        self._locks.release()
        self._database.dispose()

    def _follow(self) -> None:
        with self._database.reader() as session:
            names = obtainable_names(session, self._settings)
            claimable = backlog.count_claimable(
                session,
                names,
                running_limit=self._settings.max_running_jobs_per_project,
                within_seconds=_AHEAD_SECONDS,
            )
            running = backlog.count_running(session)
            engines = completions_service.engines_needed(session, self._settings)
        self._workers.follow(claimable, running)
        self._engines.follow(name for name in names if engines.get(name))

    def _nodes_are_usable(self) -> bool:
        """Returns whether all nodes can be used; as long as one cannot, nothing is started."""
        problems = self._cluster.unusable_nodes()
        for node_id in problems.keys() - self._said.keys():
            log.error("%s; nothing is started until then", problems[node_id])
        if self._said and not problems:
            log.info("all nodes can be used")
        self._said = problems
        return not problems

    def _verify_one(self) -> None:
        with self._database.reader() as session:
            names = obtainable_names(session, self._settings)
        verify_one(self._database, self._storage, self._settings, names)
