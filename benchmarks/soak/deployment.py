"""A deployment on one machine: the API and three workers, under the supervisor of `toque serve`.

`python -m benchmarks.soak.deployment` is that supervisor's process; `Deployment` starts and stops it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import SecretStr

from app.auth import service as auth_service
from app.cli.parent_death import bound_to_parent
from app.cli.supervisor import Program, Supervisor, Timing
from app.core.database import Database
from app.core.migrations import upgrade
from app.core.settings import BaseModelEntry, Settings

BASE_MODEL = "stand-in"
WORKERS = 3
_MARKS = {
    "api": ("app.cli.main", "api"),
    "worker": ("benchmarks.soak.worker",),
    "trainer": ("benchmarks.stand_in_trainer",),
}


@dataclass(frozen=True, slots=True)
class Deployment:
    """The running deployment, and how to reach it."""

    settings: Settings
    address: str
    keys: dict[str, str]
    """API keys by project."""
    supervisor: psutil.Process

    def processes(self, kind: str) -> list[psutil.Process]:
        """Returns the running processes of a kind (`api`, `worker` or `trainer`)."""
        marks = _MARKS[kind]
        found: list[psutil.Process] = []
        for process in self.supervisor.children(recursive=True):
            with suppress(psutil.Error):
                command = process.cmdline()
                if "app.cli.parent_death" not in command and all(mark in command for mark in marks):
                    found.append(process)
        return found


@contextmanager
def running_deployment(folder: Path, database_url: str) -> Generator[Deployment]:
    """Runs it on a fresh database until the block ends."""
    settings = Settings(
        data_dir=folder,
        database_url=database_url,
        base_models=[BaseModelEntry(name=BASE_MODEL, source=BASE_MODEL)],
        api_key=SecretStr("sk-toque-north"),
        lease_seconds=3.0,
        heartbeat_seconds=0.5,
        poll_seconds=0.2,
        retry_seconds=0.2,
        checkpoint_seconds=0.3,
        training_threads=1,
    )
    keys = _prepare(settings)
    with (
        socket.create_server(("127.0.0.1", 0), backlog=2048) as listener,
        (folder / "deployment.log").open("wb") as log,
    ):
        port: int = listener.getsockname()[1]
        process = subprocess.Popen(
            bound_to_parent([sys.executable, "-m", "benchmarks.soak.deployment", str(listener.fileno())]),
            env=environment(settings),
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield Deployment(settings, f"http://127.0.0.1:{port}", keys, psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    """Runs the supervisor's process."""
    descriptor = int(sys.argv[1])
    # Prepared for the workers only: the API would read the tokenizer, and the stand-in has none.
    worker = ("/usr/bin/env", f"TOQUE_MODELS_DIR={_models(Settings())}")
    worker += (sys.executable, "-m", "benchmarks.soak.worker")
    api = (sys.executable, "-m", "app.cli.main", "api", "--fd", str(descriptor))
    programs = [Program("api", api, descriptors=(descriptor,))]
    programs += [Program(f"worker-{number}", worker) for number in range(1, WORKERS + 1)]

    def write(name: str, line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {name:<8} | {line}", flush=True)

    timing = Timing(first_restart=0.2, longest_restart=0.5)
    asyncio.run(Supervisor(programs, write, lambda line: write("toque", line), timing).run())


def _prepare(settings: Settings) -> dict[str, str]:
    """Creates the schema, the base model and a second project; returns the keys."""
    upgrade(settings.sqlalchemy_url)
    base = _models(settings) / BASE_MODEL
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    keys = {auth_service.FIRST_PROJECT: "sk-toque-north", "south": "sk-toque-south"}
    database = Database(settings.sqlalchemy_url)
    with database.writer() as session:
        for name, key in keys.items():
            auth_service.create_key(session, auth_service.create_project(session, name).id, name, key)
    database.dispose()
    return keys


def _models(settings: Settings) -> Path:
    return settings.data_dir / "workers-models"


def environment(settings: Settings) -> dict[str, str]:
    """Returns our environment with these settings instead of the developer's own."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("TOQUE_")}
    given = settings.model_dump(mode="json", exclude_unset=True, exclude={"base_models", "api_key"})
    catalogue = ",".join(entry.model_dump_json() for entry in settings.base_models)
    return (
        plain
        | {f"TOQUE_{name.upper()}": str(value) for name, value in given.items()}
        | {"TOQUE_BASE_MODELS": f"[{catalogue}]", "PYTHONUNBUFFERED": "1"}
    )


if __name__ == "__main__":
    main()
