"""A deployment for pipelines: a real API and worker, a trainer and an engine that are stand-ins and quick."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from app.auth import service as auth_service
from app.core.database import Database
from app.core.settings import BaseModelEntry, Settings
from tests.support.command import TOQUE
from tests.support.engine_stand_in import register_engine, run_engine
from tests.support.pipeline import REPOSITORY, Pipeline, TaughtEngine
from tests.support.service import API_KEY, BASE_MODEL


@pytest.fixture
def pipeline(tmp_path: Path, sqlite_template: Path, base_models_dir: Path) -> Iterator[Pipeline]:
    data_dir = tmp_path / "toque"
    data_dir.mkdir()
    (data_dir / "toque.db").write_bytes(sqlite_template.read_bytes())
    settings = Settings(
        data_dir=data_dir, models_dir=base_models_dir, poll_seconds=0.1, heartbeat_seconds=1.0
    )
    catalogue = json.dumps([BaseModelEntry(name=BASE_MODEL, source=BASE_MODEL).model_dump()])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TOQUE_")} | {
        "TOQUE_DATA_DIR": str(data_dir),
        "TOQUE_MODELS_DIR": str(base_models_dir),
        "TOQUE_POLL_SECONDS": "0.1",
        "TOQUE_HEARTBEAT_SECONDS": "1",
        "TOQUE_BASE_MODELS": catalogue,
        "PYTHONPATH": str(REPOSITORY),
    }
    database = Database(settings.sqlalchemy_url)
    with database.writer() as session:
        auth_service.ensure_first_key(session, API_KEY)
    with ExitStack() as stack:
        stack.callback(database.dispose)
        engine_socket = str(tmp_path / "engine.sock")
        stack.enter_context(run_engine(TaughtEngine(), engine_socket))
        register_engine(database, f"unix:{engine_socket}")
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        descriptor = listener.fileno()
        log = stack.enter_context((tmp_path / "service.log").open("wb"))
        for command in (
            [*TOQUE, "api", "--fd", str(descriptor)],
            [sys.executable, "-m", "benchmarks.soak.worker"],
        ):
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=REPOSITORY,
                pass_fds=(descriptor,),
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
            stack.callback(_end, process)
        yield Pipeline(tmp_path, f"http://127.0.0.1:{listener.getsockname()[1]}/v1")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(30)
