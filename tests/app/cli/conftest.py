"""A real `toque api` on SQLite, and the command run against it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.auth.service import create_key, create_project
from app.core.database import Database
from app.core.migrations import upgrade
from app.fine_tuning.models import FineTuningJob
from tests.support.command import TOQUE, Service


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data_dir = tmp_path_factory.mktemp("toque")
    url = f"sqlite:///{data_dir / 'toque.db'}"
    upgrade(url)
    database = Database(url)
    with database.writer() as session:
        _, secret = create_key(session, create_project(session, "default").id, "tests")
    (data_dir / "api_key").write_text(secret)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        environment = {
            "TOQUE_DATA_DIR": str(data_dir),
            "TOQUE_BASE_URL": f"http://127.0.0.1:{listener.getsockname()[1]}/v1",
            "TOQUE_API_KEY": secret,
            "TOQUE_CHECK_PATIENCE_SECONDS": "30",  # however busy the machine
            "NO_COLOR": "1",
        }
        api = subprocess.Popen(
            [*TOQUE, "api", "--fd", str(listener.fileno())],
            env=os.environ | environment,
            pass_fds=(listener.fileno(),),
            stderr=subprocess.DEVNULL,
        )
    yield Service(environment, database)
    database.dispose()
    api.send_signal(signal.SIGTERM)
    assert api.wait(30) == 0


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    line = (
        '{"messages": [{"role": "user", "content": "Salt?"}, {"role": "assistant", "content": "A pinch."}]}\n'
    )
    path = tmp_path / "train.jsonl"
    path.write_text(line * 12)
    return path


@pytest.fixture
def job_id(service: Service, dataset: Path) -> str:
    created = service.run(
        "jobs", "create", "--training-file", dataset, "--model", "smollm2-135m-instruct", "--json"
    )
    assert created.exit_code == 0, created.output
    with service.database.reader() as session:
        newest = session.query(FineTuningJob).order_by(FineTuningJob.created_at.desc()).first()
    assert newest is not None
    return newest.id
