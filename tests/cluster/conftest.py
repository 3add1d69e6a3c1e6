"""A deployment whose workers and engines run on a Ray cluster of this machine, with declared GPUs."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic import SecretStr

from app.auth import service as auth_service
from app.core.database import Database
from app.core.settings import Settings
from tests.cluster.deployment import Deployment, node_environment
from tests.cluster.ray_cluster import GPUS, MortalCluster, running_redis
from tests.support.databases import execute_sql
from tests.support.service import API_KEY, run_service
from tests.support.waiting import wait_until

collect_ignore_glob = [] if find_spec("ray") else ["test_*.py"]
"""Without Ray, which `make test-cluster` installs, there is nothing to test."""


@pytest.hookimpl(tryfirst=True)  # before what is not marked is left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.filterwarnings("default"))  # Ray's own warnings are not ours
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="module")
def deployment(
    postgresql: str, base_models_dir: Path, request: pytest.FixtureRequest
) -> Iterator[Deployment]:
    """The API, a cluster of a head and three nodes with five GPUs, and the module's `FLEET`."""
    folder = Path(tempfile.mkdtemp(prefix="toque-cluster-"))
    name = f"cluster_{uuid.uuid4().hex}"
    execute_sql(postgresql, f"CREATE DATABASE {name} TEMPLATE template_toque STRATEGY file_copy")
    settings = Settings(
        data_dir=folder,
        database_url=postgresql.format(name),
        models_dir=base_models_dir,
        api_key=SecretStr(API_KEY),
        heartbeat_seconds=2.0,
        lease_seconds=10.0,
        retry_seconds=0.5,
        poll_seconds=0.3,
        checkpoint_seconds=1.0,
        training_threads=1,
        worker_idle_seconds=5.0,
        engine_idle_seconds=20.0,
        engine_drain_seconds=30.0,
        engine_wait_seconds=60.0,
        fleet_requests_per_engine=4,
        check_patience_seconds=30.0,
    )
    database = Database(settings.sqlalchemy_url)
    with database.writer() as session:
        auth_service.ensure_first_key(session, API_KEY)
    with ExitStack() as stack:
        redis = stack.enter_context(running_redis(folder))
        service = stack.enter_context(run_service(settings))
        cluster = MortalCluster(redis, node_environment(settings))
        stack.callback(cluster.close)
        for node in GPUS:
            cluster.add(node)
        deployment = Deployment(settings, database, service, cluster)
        stack.callback(deployment.stop_fleet)
        deployment.start_fleet(request.module.FLEET)
        wait_until(deployment.has_joined, "the fleet has joined the cluster", seconds=240)
        yield deployment
    database.dispose()
    execute_sql(postgresql, f"DROP DATABASE {name} WITH (FORCE)")
    shutil.rmtree(folder, ignore_errors=True)
