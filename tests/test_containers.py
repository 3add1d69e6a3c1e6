"""The images and compose.yaml, as far as they can be held to account without a container engine.

A Dockerfile is read here as a list of instructions; its commands are real and are run by the tests.
"""

from __future__ import annotations

import ast
import fnmatch
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from app.cli.main import app as toque
from app.core.database import Database
from app.core.migrations import upgrade
from app.core.settings import Settings
from app.fine_tuning import worker_registry
from app.fine_tuning.models import Worker
from app.models.catalogue import Catalogue
from tests.support.service import run_service

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}


@dataclass
class Stage:
    """One `FROM … AS name`, with what it has from the stage that it is made from."""

    name: str
    copies: list[str] = field(default_factory=list[str])
    """Sources in the repository."""
    runs: list[str] = field(default_factory=list[str])
    environment: dict[str, str] = field(default_factory=dict[str, str])
    user: str = "root"
    command: list[str] = field(default_factory=list[str])
    health: list[str] = field(default_factory=list[str])


def read_dockerfile() -> dict[str, Stage]:
    text = (ROOT / "Dockerfile").read_text()
    code = "\n".join(line for line in text.split("\n") if not line.startswith("#")).replace("\\\n", "")
    stages: dict[str, Stage] = {}
    stage = Stage("")
    for line in filter(None, map(str.strip, code.split("\n"))):
        instruction, _, rest = line.partition(" ")
        match instruction:
            case "FROM":
                parent, _, name = rest.split()
                base = stages.get(parent, Stage(""))
                stage = Stage(name, [], [], dict(base.environment), base.user, base.command, base.health)
                stages[name] = stage
            case "COPY" if not rest.startswith("--from"):
                stage.copies += rest.split()[:-1]
            case "RUN":
                stage.runs.append(rest)
            case "ENV":
                stage.environment |= dict(pair.split("=", 1) for pair in shlex.split(rest))
            case "USER":
                stage.user = rest
            case "CMD":
                stage.command = json.loads(rest)
            case "HEALTHCHECK":
                stage.health = json.loads(rest.partition("CMD ")[2])
            case "ARG" | "COPY" | "WORKDIR" | "VOLUME" | "EXPOSE":
                pass
            case _:
                pytest.fail(f"an instruction that this test does not know: {instruction}")
    return stages


STAGES = read_dockerfile()
FINAL = ("api", "worker", "engine", "fleet")


def ignored(path: str) -> bool:
    """What .dockerignore says of a path; the last pattern that matches it, or a folder above it, wins."""
    result = False
    places = [path, *(str(parent) for parent in Path(path).parents)]
    for pattern in (ROOT / ".dockerignore").read_text().split("\n"):
        if pattern and not pattern.startswith("#"):
            glob = pattern.removeprefix("!").removeprefix("**/")
            names = [Path(place).name for place in places] if "**/" in pattern else places
            if any(fnmatch.fnmatch(name, glob) for name in names):
                result = not pattern.startswith("!")
    return result


@pytest.mark.parametrize("source", [source for stage in STAGES.values() for source in stage.copies])
def test_what_the_images_copy_is_there_and_is_sent_to_the_builder(source: str) -> None:
    assert (ROOT / source).exists()
    assert not ignored(source)


@pytest.mark.parametrize("path", [".env", ".git", ".venv", "tests", "toque-data", "app/__pycache__"])
def test_nothing_else_is_sent_to_the_builder(path: str) -> None:
    assert ignored(path)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_torch_is_installed_before_what_is_locked_in_the_range_that_it_asks_for(device: str) -> None:
    folder = ROOT / "requirements"
    (wanted,) = re.findall(r"^torch[^-\w].*$", (folder / f"{device}.in").read_text(), re.MULTILINE)
    assert f'"{wanted}"' in STAGES["worker-packages"].runs[0]
    assert f"'{wanted}'" in (folder / "install.sh").read_text()
    assert not re.search(r"^torch(vision)?[^-\w]", (folder / f"{device}.txt").read_text(), re.MULTILINE)
    assert f"requirements/{device}.txt" in STAGES["worker-packages"].copies


def test_no_package_index_is_named() -> None:
    assert not re.search(r"https?://(?!127\.0\.0\.1)", (ROOT / "Dockerfile").read_text())


@pytest.mark.parametrize("name", FINAL)
def test_an_image_has_a_user_a_command_and_a_health_check(name: str) -> None:
    stage = STAGES[name]
    assert stage.user == "toque"
    assert (
        f"useradd --uid 10001 --user-group --create-home --shell /usr/sbin/nologin {stage.user}"
        in (STAGES["python"].runs[0])
    )
    assert_is_toque_command(stage.command)
    assert stage.health[:3] == ["python", "-P", "-c"]
    assert_are_settings(stage.environment)


@pytest.mark.parametrize("name", OURS)
def test_a_service_is_built_from_a_target_with_settings_that_exist(name: str) -> None:
    service = OURS[name]
    assert service["build"]["target"] in FINAL
    assert set(service["build"].get("args", {})) <= {"DEVICE", "TORCH_PIP_OPTIONS"}
    assert_is_toque_command(service.get("command", STAGES[service["build"]["target"]].command))
    assert_are_settings(service["environment"])


def test_only_the_api_is_reached_from_outside() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["api"]
    assert COMPOSE["networks"]["private"]["internal"] is True
    outside = [name for name, service in SERVICES.items() if "default" in service["networks"]]
    assert sorted(outside) == ["api", "pull"]


def test_services_wait_for_what_they_need() -> None:
    for service in SERVICES.values():
        for name, wait in service.get("depends_on", {}).items():
            if wait["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[name]
            else:
                assert wait["condition"] == "service_completed_successfully"
                assert SERVICES[name]["restart"] == "no"
    assert (
        set(SERVICES["worker"]["depends_on"]) == set(SERVICES["engine"]["depends_on"]) == {"migrate", "pull"}
    )
    assert set(SERVICES["api"]["depends_on"]) == {"migrate"}


def test_services_share_volumes_that_are_declared() -> None:
    mounts = [mount.split(":") for service in SERVICES.values() for mount in service["volumes"]]
    assert {volume for volume, _ in mounts} == set(COMPOSE["volumes"])
    assert all(service["volumes"] == ["data:/data"] for service in OURS.values())
    assert (
        STAGES["api"].environment["TOQUE_DATA_DIR"]
        == STAGES["worker"].environment["TOQUE_DATA_DIR"]
        == "/data"
    )


def test_the_environment_of_compose_is_read_as_it_is_meant() -> None:
    filled = {"POSTGRES_PASSWORD": "secret1", "TOQUE_API_KEY": "sk-toque-1"}
    environment = STAGES["engine"].environment | interpolated(SERVICES["engine"]["environment"], filled)
    settings = settings_from(environment)
    assert settings.sqlalchemy_url == "postgresql+psycopg://toque:secret1@db/toque"
    assert settings.engine_listen == "0.0.0.0:8001"
    assert (settings.storage_root, settings.models_root) == (Path("/data/storage"), Path("/data/models"))
    assert Catalogue(settings).engine_base.name == SERVICES["pull"]["command"][-1].partition(":-")[2].rstrip(
        "}"
    )
    assert not settings.api_key, "the engine and the worker hold no API key"


def test_compose_says_which_variable_is_missing() -> None:
    with pytest.raises(KeyError, match="POSTGRES_PASSWORD"):
        interpolated(SERVICES["api"]["environment"], {"TOQUE_API_KEY": "x"})


def test_the_api_image_has_every_package_that_the_service_imports() -> None:
    lock = "".join((ROOT / "requirements" / f"{name}.txt").read_text() for name in ("base", "otel"))
    locked = {re.split(r"[=<>]", line)[0] for line in lock.split("\n") if line and not line.startswith("#")}
    providers = packages_distributions()
    for path in (ROOT / "app").rglob("*.py"):
        for module in imported_modules(path) - set(sys.stdlib_module_names) - {"app", "workers"}:
            names = {re.sub(r"[-_.]+", "-", name).lower() for name in providers.get(module, [])}
            assert names & locked, f"{path}: {module}"


def test_the_api_starts_without_torch(tmp_path: Path) -> None:
    blocked = ("torch", "transformers", "peft", "accelerate", "vllm", "safetensors", "numpy")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked}))\n"
        "from app.cli.main import app\nfrom app.api.main import create_app\ncreate_app(); app()"
    )
    done = run([sys.executable, "-P", "-c", code, "db", "upgrade"], {"TOQUE_DATA_DIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr


def test_the_api_health_check(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    upgrade(settings.sqlalchemy_url)
    with run_service(settings) as service:
        port = service.url.rpartition(":")[2]
        # A proxy for the outside world must not be asked.
        environment = {"TOQUE_PORT": port, "http_proxy": "http://127.0.0.1:1"}
        assert check_health("api", environment) == 0
    assert check_health("api", environment) != 0


def test_the_worker_health_check(tmp_path: Path) -> None:
    environment = {"TOQUE_DATA_DIR": str(tmp_path), "TOQUE_HEARTBEAT_SECONDS": "60"}
    url = settings_from(environment).sqlalchemy_url
    upgrade(url)
    assert check_health("worker", environment) != 0
    report("another-host", url)
    assert check_health("worker", environment) != 0
    report(socket.gethostname(), url)
    assert check_health("worker", environment) == 0


@pytest.fixture
def vllm_port() -> Iterator[int]:
    """Answers as vLLM does while it and its model are well."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_engine_health_check(vllm_port: int) -> None:
    assert check_health("engine", {"TOQUE_ENGINE_LISTEN": f"0.0.0.0:{vllm_port}"}) == 0
    assert check_health("engine", {"TOQUE_ENGINE_LISTEN": "0.0.0.0:9"}) != 0


def report(hostname: str, url: str) -> None:
    """What a worker on that host writes with every heartbeat."""
    database = Database(url)
    with database.writer() as session:
        worker_registry.report(
            session, Worker(hostname=hostname, pid=1, device="CPU", version="1", started_at=time.time())
        )
    database.dispose()


def assert_is_toque_command(command: list[str]) -> None:
    assert command[0] == "toque"
    found: Any = get_command(toque)
    for word in command[1:]:
        if hasattr(found, "commands"):
            assert word in found.commands, command
            found = found.commands[word]


def assert_are_settings(environment: dict[str, str]) -> None:
    names = {name.removeprefix("TOQUE_").lower() for name in environment if name.startswith("TOQUE_")}
    assert names <= set(Settings.model_fields)


def interpolated(environment: dict[str, str], variables: dict[str, str]) -> dict[str, str]:
    """Compose's `${NAME:-default}` and `${NAME:?error}`."""

    def value(match: re.Match[str]) -> str:
        name, operator, rest = match.groups()
        return variables[name] if operator == ":?" else variables.get(name, "") or rest

    return {name: re.sub(r"\$\{(\w+)(:[-?])([^}]*)\}", value, text) for name, text in environment.items()}


def settings_from(environment: dict[str, str]) -> Settings:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return Settings()


def imported_modules(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.add(node.module.partition(".")[0])
    return modules


def check_health(stage: str, environment: dict[str, str]) -> int:
    """The exit code of the image's health check, run with this Python."""
    return run([sys.executable, *STAGES[stage].health[1:]], environment).returncode


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=60
    )
