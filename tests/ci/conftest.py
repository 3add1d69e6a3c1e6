"""A deployment for pipelines: a real API and worker, a trainer and an engine that are stand-ins and quick."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.auth import service as auth_service
from app.core.database import Database
from app.core.settings import BaseModelEntry, Settings
from tests.app.cli.running_service import TOQUE
from tests.app.completions.engine_stand_in import USAGE, EngineStandIn, run_engine
from tests.app.completions.test_gateway import register_engine
from tests.conftest import API_KEY, BASE_MODEL, chat_line

REPOSITORY = Path(__file__).parents[2]
QUESTIONS = {f"What is soup number {number}?": f"Soup {number}." for number in range(60)}


class TaughtEngine(EngineStandIn):
    """Every fine-tuned model knows the answers, and the base none."""

    async def _answer(self, request: Request) -> Response:
        body = await request.json()
        question = body["messages"][-1]["content"]
        text = QUESTIONS[question] if body["model"].startswith("ft:") else "I do not know."
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse(self._envelope(body, "chat.completion", [choice]) | {"usage": USAGE})


class Pipeline:
    """A repository with datasets, and the environment of a CI runner that has it checked out."""

    def __init__(self, folder: Path, base_url: str) -> None:
        self.folder = folder
        self.workspace = folder / "workspace"
        self.base_url = base_url
        (self.workspace / "data").mkdir(parents=True)
        programs = folder / "bin"
        programs.mkdir()
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("TOQUE_")
        }
        self.environment |= {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
        self._add_program(programs / "toque", f'exec {shlex.join(TOQUE)} "$@"')
        # What speaks to GitHub and GitLab, which are not here, writes down what it would have sent.
        for name in ("gh", "curl"):
            self._add_program(programs / name, f'printf "%s\\n" "$@" > {shlex.quote(str(folder / name))}')
        self.write("training.jsonl", range(12))
        self.write("heldout.jsonl", range(12, 40))
        self.write("general.jsonl", range(40, 60))

    def write(self, name: str, numbers: range) -> None:
        lines = [chat_line(f"What is soup number {number}?", f"Soup {number}.") for number in numbers]
        (self.workspace / "data" / name).write_text("\n".join(lines) + "\n")

    def run(self, script: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """The script as a runner runs it: bash, which stops at the first error."""
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=self.workspace,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def toque(self, *arguments: str) -> dict[str, object]:
        environment = {"TOQUE_BASE_URL": self.base_url, "TOQUE_API_KEY": API_KEY}
        done = self.run(shlex.join(["toque", *arguments, "--json"]), environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def sent(self, program: str) -> list[str]:
        """The arguments that the program was last called with."""
        return (self.folder / program).read_text().splitlines()

    def _add_program(self, path: Path, command: str) -> None:
        path.write_text(f"#!/bin/bash\n{command}\n")
        path.chmod(0o755)


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
