"""Base models in the bucket: machines that have none of them, and no hub, fetch them from there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from openai import InternalServerError, OpenAI
from sqlalchemy import text

from app.base_models.files import unready
from app.core.database import Database
from app.core.settings import BaseModelEntry, Settings
from app.orphans import find_orphans, sweep_orphans
from app.storage import open_storage
from app.storage.copying import copy_storage
from app.storage.local import LocalStorage
from tests.s3.conftest import elsewhere
from tests.s3.server import S3Server
from tests.s3.test_engine import run_engine
from tests.s3.test_worker import worker_elsewhere
from tests.support.command import TOQUE
from tests.support.service import BASE_MODEL, Service
from tests.support.tiny_model import TINY, write_tiny_model
from tests.support.waiting import wait_until
from tests.support.worker import create, ended

START_SECONDS = 300
EXTRA_BYTES = 96 * 2**20


@pytest.fixture
def settings(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """Each machine has a folder of its own for base models, and no package index to have them from."""
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "no-packages").as_uri())
    return settings.model_copy(update={"models_dir": None})


def environment(machine: Settings) -> dict[str, str]:
    entries = ",".join(entry.model_dump_json() for entry in machine.base_models)
    return os.environ | {
        "TOQUE_DATA_DIR": str(machine.data_dir),
        "TOQUE_MODELS_DIR": str(machine.models_root),
        "TOQUE_DATABASE_URL": machine.database_url,
        "TOQUE_STORAGE_URL": machine.storage_url,
        "TOQUE_BASE_MODELS": f"[{entries}]",
    }


def pull(machine: Settings, name: str) -> subprocess.CompletedProcess[str]:
    command = [*TOQUE, "models", "pull", name]
    return subprocess.run(command, env=environment(machine), capture_output=True, text=True, check=False)


@contextmanager
def fetching(machine: Settings, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """What an engine has fetch its base model."""
    command = [sys.executable, "-m", "workers.base_models", "fetch", name]
    with subprocess.Popen(command, env=environment(machine)) as process:
        yield process


@pytest.fixture
def tiny(settings: Settings, tmp_path: Path) -> Path:
    """A folder of one machine, which is a base model of the catalogue; most of its bytes are only ballast."""
    folder = write_tiny_model(tmp_path / "their-folder" / TINY)
    (folder / "ballast.safetensors").write_bytes(os.urandom(EXTRA_BYTES))
    (folder / "optimizer.bin").write_bytes(b"no part of the base model")
    settings.base_models[:] = [BaseModelEntry(name=TINY, source=str(folder), context=512)]
    return folder


def test_a_fresh_machine_trains_and_serves(
    service: Service, client: OpenAI, settings: Settings, tmp_path: Path, base_models_dir: Path
) -> None:
    assert not (settings.models_root / BASE_MODEL).exists()
    publisher = elsewhere(settings, tmp_path / "publisher").model_copy(update={"models_dir": base_models_dir})
    done = pull(publisher, BASE_MODEL)
    assert done.returncode == 0, done.stderr
    assert "in the storage, for all machines" in done.stdout
    wait_until(lambda: unready(settings.models_root / BASE_MODEL) is None, "the API has fetched it", 120)
    with (
        run_engine(settings, tmp_path / "engine"),
        worker_elsewhere(settings, tmp_path / "worker"),
    ):
        job = create(client, model=BASE_MODEL, hyperparameters={"n_epochs": 1})

        def answers() -> bool:
            try:
                return bool(client.completions.create(model=BASE_MODEL, prompt="Soup", max_tokens=1).choices)
            except InternalServerError:
                return False

        wait_until(answers, "the engine answers", START_SECONDS)
        wait_until(
            lambda: client.fine_tuning.jobs.retrieve(job.id).status not in ("queued", "running"),
            "the job ends",
            START_SECONDS,
        )
        done = ended(client, job.id)
        assert done.status == "succeeded", done.error
        answer = client.completions.create(model=done.fine_tuned_model, prompt="Soup", max_tokens=2)
        assert answer.choices[0].text
    names = {path.name for path in (base_models_dir / BASE_MODEL).iterdir()} | {".source"}
    for machine in (settings.data_dir, tmp_path / "engine", *(tmp_path / "worker").glob("machine-*")):
        assert {path.name for path in (machine / "models" / BASE_MODEL).iterdir()} == names
        assert not list((machine / "models").glob(".*")), "nothing half-fetched is left"


def test_a_fetch_that_is_killed_leaves_nothing_and_is_not_made_twice(
    server: S3Server, settings: Settings, database: Database, tiny: Path, tmp_path: Path
) -> None:
    assert pull(settings, TINY).returncode == 0
    tiny.rename(tiny.with_name("gone"))  # as on another machine
    machine = elsewhere(settings, tmp_path / "machine")
    target = machine.models_root / TINY

    with fetching(machine, TINY) as process:
        deadline = time.monotonic() + 60
        parts = machine.models_root / f".{TINY}.partial"
        while not any(part.stat().st_size for part in parts.rglob("ballast.safetensors.part")):
            assert time.monotonic() < deadline
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert not target.exists(), "what is incomplete has another name"

    before = server.requests("GET")
    with fetching(machine, TINY) as one, fetching(machine, TINY) as two:
        assert (one.wait(60), two.wait(60)) == (0, 0)
    files = {path.name for path in target.iterdir()} - {".source"}
    assert server.requests("GET") - before <= len(files) + 1, "one of the two fetched it, with its manifest"
    assert files == {path.name for path in tiny.with_name("gone").iterdir()} - {"optimizer.bin"}
    for name in files:
        assert (target / name).read_bytes() == (tiny.with_name("gone") / name).read_bytes()
    assert not parts.exists()
    assert "already prepared" in pull(machine, TINY).stdout


def test_an_upload_goes_on_where_it_was(settings: Settings, database: Database, tiny: Path) -> None:
    storage = open_storage(settings)
    assert pull(settings, TINY).returncode == 0
    [folder] = storage.list("bases/*/*")
    sent = {entry.key: entry for entry in storage.files(folder.key)}
    for name in ("manifest.json", "tokenizer.json"):
        storage.remove(f"{folder.key}/{name}")
    with database.writer() as session:
        assert find_orphans(session, storage).missing == [folder.key]
        session.execute(text("DELETE FROM stored_base_models"))
    assert pull(settings, TINY).returncode == 0
    again = {entry.key: entry for entry in storage.files(folder.key)}
    assert again.keys() == sent.keys()
    resent = {key.rpartition("/")[2] for key, entry in again.items() if entry != sent[key]}
    assert resent == {"manifest.json", "tokenizer.json"}


def test_a_name_stands_for_the_same_files(
    settings: Settings, database: Database, tiny: Path, tmp_path: Path
) -> None:
    storage = open_storage(settings)
    assert pull(settings, TINY).returncode == 0
    (tiny / "ballast.safetensors").write_bytes(b"others")
    refused = pull(settings, TINY)
    assert refused.returncode == 1
    assert f"The storage has other files as '{TINY}'" in refused.stderr

    copy = LocalStorage(tmp_path / "copy")
    [folder] = storage.list("bases/*/*")
    copied = list(copy_storage(storage, copy))
    assert [each.key for each in copied][-1] == f"{folder.key}/manifest.json"
    with database.reader() as session:
        assert find_orphans(session, copy, 0).missing == find_orphans(session, copy, 0).unnamed == []
    assert sweep_orphans(database, storage, 0) == []
    with database.writer() as session:
        session.execute(text("DELETE FROM stored_base_models"))
    assert sweep_orphans(database, storage, 0) == [folder.key]
    assert list(storage.files("bases")) == []


def test_what_arrives_damaged_is_not_used(
    settings: Settings, database: Database, tiny: Path, tmp_path: Path
) -> None:
    storage = open_storage(settings)
    assert pull(settings, TINY).returncode == 0
    tiny.rename(tiny.with_name("gone"))
    [folder] = storage.list("bases/*/*")
    storage.write(f"{folder.key}/config.json", b"{}")
    machine = elsewhere(settings, tmp_path / "machine")
    refused = pull(machine, TINY)
    assert refused.returncode == 1
    assert "config.json does not match its checksum" in refused.stderr
    assert not (machine.models_root / TINY).exists()
