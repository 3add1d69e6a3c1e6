"""A CI runner with a repository checked out."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.support.command import TOQUE
from tests.support.engine_stand_in import USAGE, EngineStandIn
from tests.support.service import API_KEY
from tests.support.training_files import chat_line

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
