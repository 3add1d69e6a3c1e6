"""The locks by which a worker knows who has died on its machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers import worker_locks
from workers.worker_locks import WorkerLocks

KILLED = """
import os, signal, sys
from pathlib import Path
from workers import worker_locks
worker_locks._MEMORY = Path(sys.argv[1])
worker_locks.WorkerLocks(sys.argv[2], sys.argv[3])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(worker_locks, "_MEMORY", tmp_path)
    return tmp_path


def kill_a_worker(memory: Path, database_url: str) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(memory), database_url, "worker_killed"], check=False)


def test_a_killed_worker_is_known_until_it_is_forgotten(memory: Path) -> None:
    kill_a_worker(memory, "sqlite:///here")
    locks = WorkerLocks("sqlite:///here", "worker_alive")
    assert locks.dead_workers() == ["worker_killed"]
    locks.forget(["worker_killed"])
    assert locks.dead_workers() == []
    locks.release()
    assert list(memory.iterdir()) == []


def test_what_killed_workers_of_other_deployments_left_is_removed_a_day_later(memory: Path) -> None:
    running = WorkerLocks("sqlite:///running", "worker_alive")
    [of_running] = memory.iterdir()
    kill_a_worker(memory, "sqlite:///gone")
    [of_gone] = set(memory.iterdir()) - {of_running}

    WorkerLocks("sqlite:///here", "worker_1").release()
    assert set(memory.iterdir()) == {of_running, of_gone}, "it may come back, and then has to know"

    for folder in (of_running, of_gone):
        os.utime(folder, (0, 0))
    WorkerLocks("sqlite:///here", "worker_2").release()
    assert set(memory.iterdir()) == {of_running}
    running.release()
