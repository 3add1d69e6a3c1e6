"""The stand-in engine, and as processes before it our gateway, a naive proxy and `vllm-router`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from app.completions.models import Engine
from app.core.database import Database, database_now
from app.core.parent_death import die_with_parent
from app.core.settings import BaseModelEntry
from benchmarks.serving.deployment import Deployment, create_deployment
from benchmarks.serving.measurements import progress
from benchmarks.serving.stand_in_engine import INSTANT, PACED

DIRECT, TOQUE, NAIVE, ROUTER = "direct", "toque", "naive", "vllm_router"
PROXY_CORE, LOAD_CORE = 0, 1
_ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Server:
    """A process that listens on a port of this machine."""

    port: int
    process: subprocess.Popen[bytes]

    def resident_mib(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 2**20


@contextmanager
def running_servers(folder: Path) -> Generator[dict[str, Server]]:
    """Starts the stand-in engine, as `direct`, and every installed proxy; their logs are in `folder`."""
    python = [sys.executable, "-m"]
    with ExitStack() as stack:

        def start(
            name: str,
            core: int,
            command: Callable[[int], list[str]],
            environment: Mapping[str, str] = os.environ,
        ) -> Server:
            log = folder / f"{name}.log"
            return stack.enter_context(_running(command, core, environment, log))

        def stand_in(port: int) -> list[str]:
            return [*python, "benchmarks.serving.stand_in_engine", str(port)]

        folder.mkdir(parents=True)
        servers = {DIRECT: start(DIRECT, LOAD_CORE, stand_in)}
        upstream = f"http://127.0.0.1:{servers[DIRECT].port}"
        deployment = _deployment(folder / "data", upstream)

        def toque(port: int) -> list[str]:
            return ["env", f"TOQUE_PORT={port}", *python, "app.cli.main", "api"]

        def naive(port: int) -> list[str]:
            return [*python, "benchmarks.serving.naive_proxy", str(port), upstream]

        def router(port: int) -> list[str]:
            where = ["--worker-urls", upstream, "--host", "127.0.0.1", "--port", str(port)]
            return [
                str(Path(sys.executable).with_name("vllm-router")),
                *where,
                *("--prometheus-port", str(_free_port()), "--policy", "round_robin", "--log-level", "error"),
            ]

        servers[TOQUE] = start(TOQUE, PROXY_CORE, toque, deployment.environment)
        servers[NAIVE] = start(NAIVE, PROXY_CORE, naive)
        try:
            servers[ROUTER] = start(ROUTER, PROXY_CORE, router)
        except (OSError, RuntimeError) as error:
            progress(f"vllm-router does not run here: {error}")
        yield servers


def _deployment(folder: Path, engine_url: str) -> Deployment:
    """Creates a database in which the stand-in is the engine of both its models, for good."""
    deployment = create_deployment(
        folder,
        base_models=[BaseModelEntry(name=name, source=name) for name in (INSTANT, PACED)],
        heartbeat_seconds=3600.0,
    )
    database = Database(deployment.settings.sqlalchemy_url)
    with database.writer() as session:
        for name in (INSTANT, PACED):
            session.add(
                Engine(
                    base_model=name,
                    url=engine_url,
                    api_key="engine-key",
                    status="ready",
                    device="cpu",
                    version="stand-in",
                    started_at=time.time(),
                    heartbeat_at=database_now(),
                )
            )
    database.dispose()
    return deployment


@contextmanager
def _running(
    command: Callable[[int], list[str]], core: int, environment: Mapping[str, str], log: Path
) -> Generator[Server]:
    """Runs a command with a free port on a given core, until the block ends."""
    port = _free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *command(port)],
            cwd=_ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - no other thread is alive here
        )
    try:
        _await_health(process, port, log)
        yield Server(port, process)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_health(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:  # it listens
                    return
        except OSError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"not ready after {_START_SECONDS:.0f} s: {log.read_text('utf-8', 'replace')[-500:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
