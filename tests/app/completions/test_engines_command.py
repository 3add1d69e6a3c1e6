"""`toque engines`: what the database says of each engine, and what the engine says itself."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from app.core.database import Database, database_now
from app.core.settings import Settings
from tests.support.command import run
from tests.support.engine_stand_in import ENGINE_KEY, EngineStandIn, register_engine, run_engine
from tests.support.service import BASE_MODEL


def test_engines_report_themselves(
    settings: Settings, database: Database, monkeypatch, tmp_path: Path
) -> None:
    assert json.loads(run(settings, "engines", "--json").stdout) == []
    with tempfile.TemporaryDirectory(prefix="toque-") as folder:
        socket = str(Path(folder) / "engine.sock")
        stand_in = EngineStandIn()
        with run_engine(stand_in, socket):
            ready = register_engine(database, f"unix:{socket}")
            starting = register_engine(database, "", status="starting", detail="vLLM is loading the model")
            silent = register_engine(database, "unix:/nowhere", heartbeat_at=database_now() - 100)
            unreachable = {"base_model": "other", "url": "http://127.0.0.1:1", "api_key": ENGINE_KEY}
            monkeypatch.setenv("TOQUE_ENGINE_URLS", json.dumps([unreachable]))
            began = time.monotonic()
            shown = json.loads(run(settings, "engines", "--json").stdout)
            seconds = time.monotonic() - began
            table = run(settings, "engines").stdout
            stand_in.adapters = ["a", "b", "c", "d"]
            told = {engine["id"]: engine for engine in json.loads(run(settings, "engines", "--json").stdout)}
    engines = {engine["id"]: engine for engine in shown}
    rate = engines[ready].pop("tokens_per_second")
    assert 40 / seconds - 0.1 <= rate <= 40
    assert engines[ready] == {
        "id": ready,
        "base_model": BASE_MODEL,
        "url": f"unix:{socket}",
        "device": "cpu",
        "version": "0",
        "status": "ready",
        "detail": "",
        "requests_running": 3,
        "requests_waiting": 2,
        "adapters": ["b", "c"],
    }
    assert told[ready]["adapters"] == ["a", "b", "c", "d"], "all in its memory, not only those that ran last"
    assert told[ready]["requests_waiting"] == 2
    assert 0 < told[ready]["tokens_per_second"] <= 40
    assert (engines[starting]["status"], engines[starting]["adapters"]) == ("starting", None)
    assert engines[starting]["detail"] == "vLLM is loading the model"
    assert (engines[silent]["status"], engines[silent]["tokens_per_second"]) == ("silent", None)
    given = shown[-1]
    assert (given["status"], given["detail"]) == ("given", "it cannot be reached")
    assert ENGINE_KEY not in table + json.dumps(shown)
    [line] = [line.split() for line in table.splitlines() if line.startswith(ready)]
    assert line[4:7] == ["ready", "3", "2"]
    assert 0 < float(line[7]) <= 40
    assert line[8] == "b"
