"""`/health`."""

from __future__ import annotations

import httpx2
import pytest
from openai import InternalServerError, OpenAI
from sqlalchemy import text

from app.api import readiness
from app.core.database import Database
from app.core.settings import Settings
from tests.support.engine_stand_in import ASK, EngineStandIn, register_engine, run_engine
from tests.support.service import BASE_MODEL, Service, run_service
from tests.support.waiting import wait_until
from tests.support.worker_rows import add_worker


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A worker's row, which nobody renews, counts for as long as a test takes."""
    return settings.model_copy(update={"heartbeat_seconds": 600.0})


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who writes just now may take a while."""
    monkeypatch.setattr(readiness, "_LOCK_SECONDS", 60.0)


def ready_with(http: httpx2.Client, status: int, says: str = "") -> httpx2.Response:
    """The answer, once it has this status and what it says of engines has this text."""

    def look() -> list[httpx2.Response]:
        answer = http.get("/health/ready")
        is_meant = answer.status_code == status and says in answer.json()["checks"]["engine"]
        return [answer] if is_meant else []

    [answer] = wait_until(look, f"{status} {says}")
    return answer


def test_ready_when_it_can_train_and_answer(
    service: Service, database: Database, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with service.http(None) as http:
        assert http.get("/health/live").json() == {"status": "live"}
        waiting = http.get("/health/ready")
        assert waiting.status_code == 503
        assert waiting.headers["retry-after"] == "5"
        assert set(waiting.json()["checks"]) == {"database", "worker", "engine"}
        assert waiting.json()["error"]["code"] == "not_ready"
        add_worker(database)
        socket = str(tmp_path_factory.mktemp("engine") / "e.sock")
        with run_engine(EngineStandIn(), socket):
            register_engine(database, f"unix:{socket}")
            ready = ready_with(http, 200)
            wait_until(
                lambda: f'toque_engines{{base_model="{BASE_MODEL}"}} 1.0' in http.get("/metrics").text,
                "the engine is known",
            )
        with service.http() as caller:
            assert caller.post("/v1/chat/completions", json=ASK).status_code == 503
        ready_with(http, 503, "does not answer")
    assert ready.status_code == 200
    assert ready.json() == {"status": "ready", "checks": {"database": "ok", "worker": "ok", "engine": "ok"}}


def test_another_base_stands_in_only_while_the_default_has_no_engine(
    http: httpx2.Client, database: Database, tmp_path_factory: pytest.TempPathFactory
) -> None:
    add_worker(database)
    socket = str(tmp_path_factory.mktemp("engine") / "e.sock")
    with run_engine(EngineStandIn(), socket):
        register_engine(database, f"unix:{socket}", base_model="other")
        ready_with(http, 200)
        register_engine(database, "unix:/none", status="starting", detail="loading the weights")
        waiting = ready_with(http, 503, "loading")
    assert waiting.json()["checks"]["engine"] == "loading the weights"


def test_a_database_that_was_not_upgraded_is_named(client: OpenAI, database: Database) -> None:
    with database.writer() as session:
        session.execute(text("ALTER TABLE files RENAME TO files_of_another_version"))
    with pytest.raises(InternalServerError, match="toque db upgrade") as refused:
        client.files.list()
    assert (refused.value.status_code, refused.value.code) == (503, "database_outdated")


def test_a_catalogue_without_the_engines_base_says_so(settings: Settings, database: Database) -> None:
    with run_service(settings.model_copy(update={"base_models": []})) as service, service.http(None) as http:
        checks = http.get("/health/ready").json()["checks"]
    assert checks["database"] == "ok"
    assert "catalogue of base models has no" in checks["base_model"]


def test_a_base_that_is_not_prepared_is_named(settings: Settings, database: Database, tmp_path) -> None:
    bare = settings.model_copy(update={"models_dir": tmp_path / "empty"})
    with run_service(bare) as service, service.http(None) as http:
        checks = http.get("/health/ready").json()["checks"]
    assert f"toque models pull {BASE_MODEL}" in checks["base_model"]


def test_a_database_that_is_gone_is_503_everywhere(settings: Settings, tmp_path) -> None:
    url = "postgresql+psycopg://nobody@127.0.0.1:1/none?connect_timeout=1"
    with run_service(settings.model_copy(update={"database_url": url})) as service, service.http() as http:
        ready = http.get("/health/ready")
        assert (ready.status_code, http.get("/health/live").status_code) == (503, 200)
        assert "cannot be used" in ready.json()["checks"]["database"]
        listing = http.get("/v1/files")
        assert (listing.status_code, listing.headers["retry-after"]) == (503, "5")
        assert listing.json()["error"]["code"] == "database_unavailable"


def test_a_lock_that_is_held_is_named(
    service: Service, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "_LOCK_SECONDS", 0.5)
    add_worker(database)
    if database.engine.dialect.name != "sqlite":
        assert database.lock_is_free(0.1)
        return
    with database.writer() as session, service.http(None) as http:
        session.connection()  # takes the lock
        held = http.get("/health/ready")
    assert held.status_code == 503
    assert held.json()["checks"] == {
        "database": "another process holds SQLite's lock: nothing can be written"
    }
    with service.http(None) as http:
        wait_until(
            lambda: http.get("/health/ready").json()["checks"]["database"] == "ok",
            "the lock is known to be free",
        )


@pytest.mark.parametrize("damage", [b"\x00" * 4096, b"no database"], ids=["page", "file"])
def test_a_damaged_sqlite_file(
    damage: bytes, settings: Settings, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    if database.engine.dialect.name != "sqlite":
        pytest.skip("a file of SQLite")
    with run_service(settings) as service, service.http() as http:
        database.dispose()
        path = settings.data_dir / "toque.db"
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.write(damage * (size // len(damage)))
        chat = {"model": BASE_MODEL, "messages": [{"role": "user", "content": "Hello"}]}
        for answer in (
            http.get("/v1/files"),
            http.get("/v1/fine_tuning/jobs"),
            http.post("/v1/chat/completions", json=chat),
        ):
            assert answer.status_code == 503, answer.text
            assert answer.json()["error"]["code"] == "database_unavailable"
        assert http.get("/health/ready").json()["checks"]["database"].startswith("cannot be used: ")
    assert "restore a backup" in caplog.text
