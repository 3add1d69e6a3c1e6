"""What `/metrics` shows: this process, and the deployment as the database and the engines see it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from anyio import CapacityLimiter, from_thread
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from sqlalchemy.exc import SQLAlchemyError

from app.api import deployment_metrics
from app.completions.engine_load import read_loads
from app.completions.replicas import Replicas
from app.core.database import Database
from app.core.settings import Settings
from app.core.stale_while_revalidate import StaleWhileRevalidate
from app.storage.base import Storage

_FRESH_SECONDS = 1.0


class Exposition:
    """The metrics in Prometheus's text format, read once in a second at most.

    Whoever asks has no key: one thread is for all of them, and it is none that other requests need.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        storage: Storage,
        replicas: Replicas,
        registry: CollectorRegistry,
    ) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._replicas = replicas
        self._registry = registry
        self._content: StaleWhileRevalidate[None, bytes] = StaleWhileRevalidate(
            self._read, fresh_seconds=_FRESH_SECONDS, stale_seconds=_FRESH_SECONDS, limiter=CapacityLimiter(1)
        )

    async def read(self) -> bytes:
        """Return all metrics, at most a second old."""
        return await self._content.get(None)

    def _read(self, _: None) -> bytes:
        families = [*self._of_database(), *self._of_engines()]
        return generate_latest(self._registry) + generate_latest(_collected(families))

    def _of_database(self) -> Iterable[Metric]:
        up = GaugeMetricFamily(
            "toque_database_up", "1 if the database can be read; else what it knows is left out"
        )
        try:
            with self._database.reader() as session:
                families = deployment_metrics.collect(session, self._settings, self._storage)
        except SQLAlchemyError:
            families = []
        up.add_metric([], float(bool(families)))
        return [up, *families]

    def _of_engines(self) -> Iterable[Metric]:
        ready = GaugeMetricFamily("toque_engines", "Engines ready to answer", labels=["base_model"])
        for base_model, count in self._replicas.count_ready().items():
            ready.add_metric([base_model], count)
        loads = from_thread.run(read_loads, self._replicas)
        names = sorted({name for load in loads.values() for name in load})
        families = {
            name: GaugeMetricFamily(name, "Of an engine, as vLLM reports it", labels=["engine", "base_model"])
            for name in names
        }
        for replica, load in loads.items():
            for name, value in load.items():
                families[name].add_metric([replica.id, replica.address.base_model], value)
        return [ready, *families.values()]


def _collected(families: Iterable[Metric]) -> CollectorRegistry:
    """Return a registry that has only these families."""

    class Collected:
        def collect(self) -> Iterable[Metric]:
            return families

    registry = CollectorRegistry()
    registry.register(cast("CollectorRegistry", Collected()))  # pyright: ignore[reportArgumentType]
    return registry
