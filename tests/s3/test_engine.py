"""The real engine on a machine of its own, with one slot for adapters: vLLM reads them again and again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from openai import InternalServerError, OpenAI
from sqlalchemy import select

from app.core.database import Database
from app.core.settings import Settings
from app.models.adapters.models import Adapter
from tests.end_to_end.test_serving import make_adapter
from tests.s3.conftest import elsewhere
from tests.s3.server import S3Server
from tests.support.service import BASE_MODEL, Service
from tests.support.waiting import wait_until

START_SECONDS = 300
AWAY_SECONDS = 60


@contextmanager
def run_engine(settings: Settings, folder: Path) -> Iterator[Path]:
    """The engine; yields the folder of its cache."""
    own = elsewhere(settings, folder)
    environment = os.environ | {
        "TOQUE_DATA_DIR": str(own.data_dir),
        "TOQUE_MODELS_DIR": str(own.models_root),
        "TOQUE_DATABASE_URL": own.database_url,
        "TOQUE_STORAGE_URL": own.storage_url,
        "TOQUE_ENGINE_MAX_LORAS": "1",
        "TOQUE_ENGINE_KV_CACHE_GIB": "0.25",
        "TOQUE_HEARTBEAT_SECONDS": "1",
    }
    log = folder / "engine.log"
    with log.open("ab") as output:
        command = [sys.executable, "-m", "workers.inference.engine"]
        engine = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        yield own.data_dir / "cache"
        assert engine.poll() is None, log.read_text()
    finally:
        engine.terminate()
        engine.wait(60)


def import_adapter(service: Service, folder: Path) -> str:
    names = ("adapter_config.json", "adapter_model.safetensors")
    files = {name: (name, (folder / name).read_bytes()) for name in names}
    with service.http() as http:
        answer = http.post("/v1/adapters", files=files, data={"base_model": BASE_MODEL})
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def copy_of(cache: Path, model: str) -> Path:
    return cache / "copies" / f"adapters%2F{model.rpartition(':')[2]}"


def ask(client: OpenAI, model: str) -> str:
    answer = client.completions.create(
        model=model, prompt="The soup of the day is", max_tokens=4, temperature=0
    )
    return answer.choices[0].text


def seconds_to_ask(client: OpenAI, model: str) -> float:
    started = time.perf_counter()
    ask(client, model)
    return time.perf_counter() - started


def test_an_engine_outlives_evictions_and_a_bucket_that_is_away(
    server: S3Server,
    service: Service,
    client: OpenAI,
    settings: Settings,
    database: Database,
    tmp_path: Path,
    base_models_dir: Path,
) -> None:
    for number in range(3):
        make_adapter(base_models_dir / BASE_MODEL, tmp_path / f"adapter-{number}", 8, number)
    with run_engine(settings, tmp_path / "engine") as cache:

        def answers() -> bool:
            try:
                return bool(ask(client, BASE_MODEL))
            except InternalServerError:
                return False

        wait_until(answers, "the engine answers", START_SECONDS)
        one, two = (import_adapter(service, tmp_path / f"adapter-{number}") for number in (0, 1))
        expected = {one: ask(client, one), two: ask(client, two)}
        warm = [seconds_to_ask(client, each) for each in (one, two, one, two)]

        for copy in (cache / "copies").iterdir():
            shutil.rmtree(copy)  # as an eviction does
        assert {each: ask(client, each) for each in (one, two)} == expected, "vLLM has read them again"

        before = server.requests("GET")
        cold = import_adapter(service, tmp_path / "adapter-2")
        with ThreadPoolExecutor(8) as threads:
            texts = list(threads.map(lambda _: ask(client, cold), range(8)))
        print(f"warm {warm}, GET requests for 8 first requests at once: {server.requests('GET') - before}")
        assert len(set(texts)) <= 2, "bf16 may differ between batches"
        assert server.requests("GET") - before <= 2 * 3, (
            "manifest, configuration and weights, by API and engine"
        )

        new = import_adapter(service, tmp_path / "adapter-0")
        wait_until(copy_of(cache, new).exists, "the new model is fetched before it is asked for")
        for each in (new, two):
            shutil.rmtree(copy_of(cache, each))
        with server.away():
            until = time.monotonic() + AWAY_SECONDS
            while time.monotonic() < until:
                assert {each: ask(client, each) for each in (one, cold)}[one] == expected[one]
                assert ask(client, BASE_MODEL)
            with pytest.raises(InternalServerError) as refused:
                ask(client, new)
            assert refused.value.code == "model_not_loaded"
        assert ask(client, new)
        assert ask(client, two) == expected[two]
    with database.reader() as session:
        assert set(session.scalars(select(Adapter.quarantine_reason))) == {None}
