"""A project to look at: the demo's data and comparison, with jobs and answers that are made up.

Files, jobs, comparisons and aliases are made through the API. A stand-in worker says what a trainer would,
and a stand-in engine answers as often rightly as the demo's models do.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import httpx2
from openai import OpenAI
from sqlalchemy import update

from app.auth.models import Project
from app.core.database import Database
from app.demo.house_style import HELDOUT_FILE, TRAINING_FILE, load_questions
from app.models.adapters.models import Adapter
from app.models.aliases.models import Alias, AliasChange
from app.usage import folding
from app.usage.models import AliasUsage, Key, Sums
from tests.app.comparisons.stub_engine import StubEngine, ended
from tests.support.engine_stand_in import register_engine, run_engine
from tests.support.service import BASE_MODEL, Service
from tests.support.standin_worker import StandInWorker
from tests.support.waiting import wait_until
from tests.support.worker_rows import add_worker

ALIAS = "house-style:production"
_RIGHT = {"tuned": 0.94, "first": 0.88, "examples": 0.29, "base": 0.01}
_PARITY = {"tokens": 412, "distance": 0.0031, "base_distance": 0.0029, "effect": 0.41, "tolerance": 0.02}
_HOUR = 3600
_EPOCH = 39
"""The steps in which all of the demo's examples are seen once."""


@dataclass(frozen=True, slots=True)
class ShownProject:
    """What there is to look at."""

    training_file: str
    job: str
    """A job that trains, and has begun to learn by heart."""
    model: str
    """A model that continued from another one."""
    comparison: str


@contextmanager
def shown_project(service: Service, database: Database) -> Iterator[ShownProject]:
    """Makes everything; the engine answers until the block ends."""
    with (
        tempfile.TemporaryDirectory(prefix="toque-") as folder,
        service.client() as client,
        service.http() as http,
    ):
        references = {each.turns[-1]["content"]: each.reference for each in load_questions(HELDOUT_FILE)}

        def respond(body: dict[str, Any]) -> str:
            time.sleep(0.02)  # so that the times of answers can be seen
            return _answer(body, references)

        engine = StubEngine(respond)
        socket = str(Path(folder) / "engine.sock")
        with run_engine(engine, socket):
            register_engine(database, f"unix:{socket}")
            add_worker(database)
            yield _make(client, http, database)


def _answer(body: dict[str, Any], references: dict[str, str]) -> str:
    """Answer a question rightly with the model's chance, and otherwise as a base model would."""
    question = body["messages"][-1]["content"]
    model = str(body["model"])
    who = "tuned" if "-v2" in model else "first" if "ft:" in model else "base"
    if who == "base" and len(body["messages"]) > 4:
        who = "examples"
    chance = crc32(question.encode()) % 1000 / 1000  # so who knows more also knows what others know
    if chance < _RIGHT[who]:
        return references.get(question, "Spoons up!")
    return "I'm sorry to hear that. Please tell me a bit more about the problem, and I will try to help."


def _make(client: OpenAI, http: httpx2.Client, database: Database) -> ShownProject:
    training, held_out = (_upload(client, path) for path in (TRAINING_FILE, HELDOUT_FILE))
    first = _train(client, database, training, held_out, suffix="house-style", steps=3 * _EPOCH)
    second = _train(client, database, training, held_out, suffix="house-style-v2", steps=5 * _EPOCH)
    _set_parity(database)
    job = client.fine_tuning.jobs.create(
        model=BASE_MODEL,
        training_file=training,
        validation_file=held_out,
        suffix="longer",
        hyperparameters={"n_epochs": 10},
    )
    worker = StandInWorker(database)
    for number, step in enumerate(range(2 * _EPOCH, 9 * _EPOCH, 2 * _EPOCH)):
        worker.learn(step, 10 * _EPOCH, first=step - 2 * _EPOCH + 1, turn=0.35)
        worker.checkpoint(step, full_valid_loss=(0.92, 0.71, 0.83, 0.96)[number])
    client.fine_tuning.jobs.create(model=BASE_MODEL, training_file=training, suffix="smaller-rank", seed=2)
    comparison = _compare(client, training, held_out, first, second)
    _move_alias(http, first, second, comparison)
    _age(database)
    _count_traffic(database, first, second)
    return ShownProject(training, job.id, second, comparison)


def _upload(client: OpenAI, path: Path) -> str:
    file = client.files.create(file=(f"larkspoon-{path.name}", path.read_bytes()), purpose="fine-tune").id
    wait_until(lambda: client.files.retrieve(file).status == "processed", "the file is checked", seconds=120)
    return file


def _train(
    client: OpenAI,
    database: Database,
    training: str,
    held_out: str,
    *,
    suffix: str,
    steps: int,
) -> str:
    client.fine_tuning.jobs.create(
        model=BASE_MODEL,
        training_file=training,
        validation_file=held_out,
        suffix=suffix,
        hyperparameters={"n_epochs": steps // _EPOCH},
    )
    worker = StandInWorker(database)
    worker.learn(steps, steps, turn=1.0)
    for step in range(_EPOCH, steps, _EPOCH):
        worker.checkpoint(step, full_valid_loss=0.6 + 20 / step)
    return worker.succeed()


def _set_parity(database: Database) -> None:
    with database.writer() as session:
        session.execute(
            update(Adapter).where(~Adapter.name.contains(":ckpt-")).values(parity=_PARITY, bytes=9_871_234)
        )


def _compare(client: OpenAI, training: str, held_out: str, first: str, second: str) -> str:
    examples = {"type": "few_shot", "name": "base + 8 examples", "examples": 8, "file": training}
    body = {
        "model": BASE_MODEL,
        "name": "House style, second version",
        "file": held_out,
        "grader": "exact_match",
        "candidates": [
            {"type": "base", "name": "base alone"},
            examples,
            {"type": "model", "name": "first version", "model": first},
            {"type": "model", "name": "fine-tuned", "model": second},
        ],
    }
    created = client.post("/comparisons", cast_to=dict[str, Any], body=body)
    found = ended(client, created["id"])
    assert found["status"] == "succeeded", found
    return created["id"]


def _move_alias(http: httpx2.Client, first: str, second: str, comparison: str) -> None:
    address = f"/v1/aliases/{ALIAS}"
    rules = {"beats": ["base", "prompted"], "min_score": 0.8}
    promotion = {
        "model": second,
        "comparison": comparison,
        "rules": rules,
        "version": 1,
        "reason": "Nightly gate",
    }
    shares = [{"model": first, "weight": 80}, {"model": second, "weight": 20}]
    split = {"split": shares, "version": 3, "reason": "A fifth of the traffic, to watch the tone of refunds"}
    http.put(address, json={"model": first, "reason": "First release"}).raise_for_status()
    http.post(f"{address}/promote", json=promotion).raise_for_status()
    http.post(
        f"{address}/rollback", json={"reason": "Complaints about the tone of refunds"}
    ).raise_for_status()
    http.put(address, json=split).raise_for_status()


def _age(database: Database) -> None:
    """Move the alias's history into the past, over which there was traffic."""
    now = time.time()
    with database.writer() as session:
        for version, hours in ((1, 200), (2, 54), (3, 51), (4, 9)):
            at = now - hours * _HOUR
            session.execute(update(AliasChange).where(AliasChange.version == version).values(created_at=at))
        session.execute(update(Alias).values(created_at=now - 200 * _HOUR, updated_at=now - 9 * _HOUR))


def _count_traffic(database: Database, first: str, second: str) -> None:
    chance = random.Random(16)
    now = int(time.time()) // 60 * 60
    with database.writer() as session:
        project = session.query(Project).filter_by(name="default").one().id
        counted: dict[Key, Sums] = {}
        for hour in range(24):
            asked = 30 + chance.randrange(40)
            new = asked // 5 if hour < 9 else 0
            for model, requests in ((first, asked - new), (second, new)):
                if requests:
                    sums = Sums(requests, requests * 61, requests * 19)
                    counted[project, now - hour * _HOUR - 120, model, ALIAS] = sums
        folding.add_usage(session, counted, AliasUsage)
        folding.add_usage(session, {key[:3]: sums for key, sums in counted.items()})
