"""`toque serve`: the real API and database, with small stand-ins for the worker and the engine."""

from __future__ import annotations

import json
import os
import re
import socket
import sqlite3
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import HTTPError

import psutil
import pytest
from openai import OpenAI
from sqlalchemy import update

from app.auth.models import Project
from app.auth.service import digest, find_caller
from app.completions.models import EngineDemand
from app.core.database import Database
from tests.support.command import TOQUE
from tests.support.watched_process import Watched, has_ended, read_rest, read_until

_WORKER = """
import signal, os, time
from app.core.database import Database
from app.fine_tuning.models import Worker
from app.core.settings import Settings

with Database(Settings().sqlalchemy_url).writer() as session:
    session.add(
        Worker(
            hostname="h", pid=1, device="none", version="0",
            started_at=time.time(), heartbeat_at=time.time() + 600,
        )
    )
print("pid", os.getpid())
signal.pause()
"""
_ENGINE = """
import signal, os, time
from app.completions.models import Engine
from app.core.database import Database
from app.core.settings import Settings
from app.models.catalogue import Catalogue

with Database(Settings().sqlalchemy_url).writer() as session:
    session.add(
        Engine(
            base_model=Catalogue(Settings()).engine_base.name, url="unix:/none", api_key="k", status="ready",
            device="none", version="0", started_at=time.time(), heartbeat_at=time.time() + 600,
        )
    )
print("pid", os.getpid())
signal.pause()
"""
_PULL = """
import sys
from app.core.settings import Settings
from app.models.catalogue import Catalogue

settings = Settings()
folder = settings.base_model_dir(Catalogue(settings).engine_base)
folder.mkdir(parents=True)
(folder / "config.json").write_text("{}")
print("pulled", sys.argv[2])
"""

Serve = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    workers = tmp_path / "stand-ins" / "workers"
    for name, code in (("training/worker", _WORKER), ("inference/engine", _ENGINE), ("base_models", _PULL)):
        module = workers / f"{name}.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(code)
    started: list[subprocess.Popen[str]] = []

    def start(*options: str, **environment: str) -> subprocess.Popen[str]:
        # The caller's folder has an `app` of its own, as many projects have.
        (tmp_path / "app.py").write_text("raise SystemExit('the wrong app')")
        command = [*TOQUE, "serve", "--data-dir", "data", *options]
        started.append(
            subprocess.Popen(
                command,
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": str(workers.parent)} | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_from_the_first_start_to_the_stop(serve: Serve, tmp_path: Path) -> None:
    service = serve("--port", "0")

    said = read_until(service, "the first one is kept in")
    [address] = re.findall(r"toque  \| ready on (\S+/v1) after \d+\.\d s", said)
    [console] = re.findall(r"the console is (\S+): sign in with an API key", said)
    with urllib.request.urlopen(console) as page:
        assert b"Sign in to Toque" in page.read()
    [key] = re.findall(r"API key (sk-\S+) ", said)
    key_file = tmp_path / "data" / "api_key"
    assert key_file.read_text().strip() == key
    assert f"the first one is kept in {key_file}" in said
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert said.index("running `toque models pull") < said.index("pulled smollm2-135m-instruct")
    programs = [Watched(int(pid)) for pid in re.findall(r"(?:worker|engine) \| pid (\d+)", said)]
    assert len(programs) == 2
    request = urllib.request.Request(f"{address}/models", headers={"authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request) as response:
        assert response.status == 200

    service.terminate()
    said = read_rest(service)

    assert service.wait(20) == 0
    assert "killed" not in said
    assert all(program.ends() for program in programs)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{address}/models")

    again = serve("--port", "0")
    said = read_until(again, "ready on")
    assert "API key" not in said
    assert "pull" not in said

    again.kill()
    for pid in re.findall(r"(?:worker|engine) \| pid (\d+)", said):
        assert has_ended(int(pid))


def test_a_port_in_use(serve: Serve, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        service = serve("--port", str(port))
        said = read_rest(service)

    assert service.wait(20) == 2
    assert said.startswith(f"Error: port {port} on 127.0.0.1 is already in use; ")
    assert said.count("\n") == 1
    assert not (tmp_path / "data" / "toque.db").exists()


def test_a_second_one_on_the_same_data_folder(serve: Serve, tmp_path: Path) -> None:
    first = serve("--port", "0")
    said = read_until(first, "ready on")
    [address] = re.findall(r"ready on (\S+)/v1", said)

    second = serve("--port", "0")
    said = read_rest(second)

    assert second.wait(20) == 2
    assert said.startswith("Error: another `toque serve` runs on ")
    assert f"{tmp_path / 'data'}: {address}, process {first.pid}; stop it, or choose " in said
    assert said.count("\n") == 1

    first.kill()
    first.wait()
    read_until(serve("--port", "0"), "ready on")


def test_an_engine_for_each_base_that_is_asked_for(serve: Serve, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    bases = [{"name": name, "source": str(tmp_path / name)} for name in ("first", "second")]
    given = {"TOQUE_BASE_MODELS": json.dumps(bases), "TOQUE_API_KEY": "sk-1"}
    service = serve("--port", "0", TOQUE_ENGINE_IDLE_SECONDS="3600", **given)

    said = read_until(service, "ready on")
    [address] = re.findall(r"ready on (\S+/v1)", said)
    assert re.search(r"engine \| pid \d+", said)
    assert "engine of second" not in said
    question = {"model": "second", "messages": [{"role": "user", "content": "Hello"}]}
    request = urllib.request.Request(
        f"{address}/chat/completions",
        json.dumps(question).encode(),
        {"authorization": "Bearer sk-1", "content-type": "application/json"},
    )
    with pytest.raises(HTTPError) as refusal:
        urllib.request.urlopen(request)
    assert (refusal.value.status, refusal.value.headers["retry-after"]) == (503, "5")
    refusal.value.close()
    [pid] = re.findall(r"engine of second \| pid (\d+)", read_until(service, "engine of second | pid"))
    second = Watched(int(pid))
    database = Database(f"sqlite:///{tmp_path / 'data' / 'toque.db'}")
    with database.writer() as session:
        session.execute(update(EngineDemand).values(asked_at=EngineDemand.asked_at - 3600))
    database.dispose()
    read_until(service, "the engine of second is not needed now")
    assert second.ends()

    service.terminate()
    said = read_rest(service)
    assert service.wait(20) == 0
    assert "killed" not in said


def test_a_given_key_is_not_shown(serve: Serve, tmp_path: Path) -> None:
    service = serve("--port", "0", TOQUE_API_KEY="sk-given")

    said = read_until(service, "starting on")
    service.terminate()
    said += read_rest(service)

    assert "sk-given" not in said
    assert not (tmp_path / "data" / "api_key").exists()
    database = Database(f"sqlite:///{tmp_path / 'data' / 'toque.db'}")
    with database.reader() as session:
        caller = find_caller(session, digest("sk-given"))
        assert session.get_one(Project, caller.project_id).name == "default"
    database.dispose()


def test_no_program_has_secrets_that_it_does_not_need(serve: Serve) -> None:
    secrets = {
        "TOQUE_API_KEY": "sk-secret-1",
        "HF_TOKEN": "hf-secret-2",
        "OPENAI_API_KEY": "sk-secret-3",
        "TOQUE_ENGINE_URLS": json.dumps(
            [{"base_model": "m", "url": "http://127.0.0.1:9", "api_key": "sk-secret-4"}]
        ),
        "HTTPS_PROXY": "http://somebody:secret-5@127.0.0.1:9",
        "TOQUE_HEARTBEAT_SECONDS": "7",
    }
    service = serve("--port", "0", **secrets)
    said = read_until(service, "ready on")

    for name in ("worker", "engine"):
        [pid] = re.findall(rf"{name} +\| pid (\d+)", said)
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"TOQUE_HEARTBEAT_SECONDS=7" in environment
        assert re.findall(rb"secret-\d", environment) == []
    found = [
        re.findall(rb"secret-\d", Path(f"/proc/{child.pid}/environ").read_bytes())
        for child in psutil.Process(service.pid).children()
    ]
    assert sorted(found) == [[], [], [b"secret-4"]], "the API asks engines by URL"


def test_what_it_stores_is_for_its_user_alone(serve: Serve, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "storage").mkdir(mode=0o755, parents=True)
    for path in (tmp_path, data, data / "storage"):
        path.chmod(0o755)
    sqlite3.connect(data / "toque.db").close()
    (data / "toque.db").touch()
    (data / "toque.db").chmod(0o644)

    service = serve("--port", "0", TOQUE_API_KEY="sk-1")
    said = read_until(service, "ready on")
    [address] = re.findall(r"ready on (\S+/v1)", said)
    with OpenAI(base_url=address, api_key="sk-1") as client:
        client.files.create(file=("x.jsonl", b"{}"), purpose="batch")

    assert f"{data} was open to other users (mode 755): its mode is now 700" in said
    assert f"{data / 'toque.db'} was open to other users (mode 644): its mode is now 600" in said
    assert (data / "storage" / "objects").is_dir()
    assert [path for path in (data, *data.rglob("*")) if path.stat().st_mode & 0o077] == []
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_a_group_may_share_the_data(serve: Serve, tmp_path: Path) -> None:
    read_until(serve("--port", "0", TOQUE_UMASK="007"), "starting on")

    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o770
    assert (tmp_path / "data" / "toque.db").stat().st_mode & 0o007 == 0


def test_a_pull_that_fails_ends_the_start(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "stand-ins" / "workers" / "base_models.py").write_text("raise SystemExit(7)")

    service = serve("--port", "0")
    said = read_rest(service)

    assert service.wait(20) == 7
    assert "api" not in re.findall(r"^(\w+) +\|", said, re.MULTILINE)


def test_models_pull_passes_the_exit_code(serve: Serve, tmp_path: Path) -> None:
    pull = "import sys; sys.exit(sys.argv[1:] != ['pull', 'm'])"
    (tmp_path / "stand-ins" / "workers" / "base_models.py").write_text(pull)
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path / "stand-ins"),
        "TOQUE_DATA_DIR": str(tmp_path / "data"),
    }

    assert subprocess.run([*TOQUE, "models", "pull", "m"], env=environment, check=False).returncode == 0
    assert subprocess.run([*TOQUE, "models", "pull", "n"], env=environment, check=False).returncode == 1


def test_a_tethered_command_does_not_start_without_its_parent() -> None:
    orphan = [
        sys.executable,
        "-m",
        "app.cli.parent_death",
        "1",
        "15",
        sys.executable,
        "-c",
        "print('started')",
    ]

    ended = subprocess.run(orphan, capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stdout) == (1, "")
