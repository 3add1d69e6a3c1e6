"""`validation_file: "auto"`: a hold-out of the training file; its rules, on any file."""

from __future__ import annotations

import json
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI

from app.core.database import Database
from app.core.errors import InvalidRequestError
from app.core.settings import Settings
from app.files.models import File
from app.fine_tuning.hold_out.split import choose
from app.fine_tuning.models import EXTENDED_SPEC_VERSION, FineTuningJob
from app.fine_tuning.schemas import SplitRequest
from app.orphans import find_orphans
from tests.support.jobs import create, upload
from tests.support.training_files import chat_line, training_bytes

pytestmark = pytest.mark.one_database

INTENTS = ["refund", "delivery", "menu", "hours"]


def labelled(examples: int) -> bytes:
    """Questions with one of four answers; one in ten is there again, in other letters, spaces and signs."""
    lines: list[str] = []
    for number in range(examples):
        question, answer = f"Question number {number}?", INTENTS[number % 4]
        lines.append(chat_line(question, answer))
        if number % 10 == 3:
            lines.append(chat_line(f"  QUESTION   number {number}!", answer.upper()))
    return "".join(line + "\n" for line in lines).encode()


def content(client: OpenAI, file_id: str) -> list[str]:
    return client.files.content(file_id).text.splitlines()


def question(line: str) -> str:
    return " ".join(json.loads(line)["messages"][0]["content"].casefold().strip(" ?!").split())


def test_a_hold_out_is_made_recorded_and_downloadable(client: OpenAI, database: Database) -> None:
    original = labelled(200)
    file = client.files.create(file=("intents.jsonl", original), purpose="fine-tune").id
    job = create(client, training_file=file, validation_file="auto")
    split: dict[str, Any] = job.to_dict()["validation_split"]  # pyright: ignore[reportAssignmentType]
    assert job.training_file == file
    assert (split["share"], split["seed"]) == (0.1, 0)
    rest, held_out = content(client, split["training_file"]), content(client, job.validation_file or "")
    assert (len(rest), len(held_out)) == (split["examples"], split["held_out"])
    assert sorted(rest + held_out) == sorted(original.decode().splitlines())
    assert not {question(line) for line in rest} & {question(line) for line in held_out}
    assert len({question(line) for line in held_out}) == 20, "a tenth of the 200 different ones"
    answers = {question(line): json.loads(line)["messages"][1]["content"].casefold() for line in held_out}
    assert Counter(answers.values()) == dict.fromkeys(INTENTS, 5), "each answer has its share"
    names = {client.files.retrieve(one).filename for one in (split["training_file"], job.validation_file)}
    assert names == {"intents.rest.jsonl", "intents.held-out.jsonl"}
    assert {client.files.retrieve(one).purpose for one in (split["training_file"], job.validation_file)} == {
        "fine-tune"
    }
    assert client.fine_tuning.jobs.retrieve(job.id).to_dict()["validation_split"] == split
    with database.reader() as session:
        row = session.get_one(FineTuningJob, job.id)
        assert row.spec_version == EXTENDED_SPEC_VERSION, "no older worker trains on the whole file"
        assert row.learnt_file_id == split["training_file"]


def test_the_same_seed_gives_the_same_files(client: OpenAI) -> None:
    file = upload(client, labelled(100))

    def held_out(**split: Any) -> str:
        job = create(client, training_file=file, extra_body={"validation_split": split})
        return client.files.retrieve(job.validation_file or "").to_dict()["sha256"]  # pyright: ignore

    assert held_out(share=0.2, seed=7) == held_out(share=0.2, seed=7)
    assert held_out(share=0.2, seed=7) != held_out(share=0.2, seed=8)


def test_a_dry_run_says_what_would_be_held_out_and_makes_no_file(client: OpenAI, database: Database) -> None:
    file = upload(client, labelled(100))
    body = {"validation_split": {"share": 0.3, "seed": 5}}
    asked = create(client, training_file=file, extra_body=body | {"dry_run": True}).to_dict()
    with database.reader() as session:
        assert session.query(File).count() == 1
    made = create(client, training_file=file, extra_body=body).to_dict()["validation_split"]
    assert asked["validation_split"] == {
        name: made[name]  # pyright: ignore
        for name in ("share", "seed", "examples", "held_out")
    }
    assert asked["overlap"] == {"exact": 0, "normalised": 0, "listed": []}
    assert asked["examples"] == asked["validation_split"]["examples"]  # pyright: ignore


@pytest.mark.parametrize(
    ("examples", "parameters", "param"),
    [
        (10, {"validation_file": "auto"}, "validation_file"),
        (12, {"extra_body": {"validation_split": {"share": 0.01}}}, "validation_file"),
        (40, {"extra_body": {"validation_split": {"share": 0.6}}}, "validation_split.share"),
        (40, {"extra_body": {"validation_split": {"share": 0}}}, "validation_split.share"),
        (40, {"extra_body": {"validation_split": {"ratio": 0.1}}}, "validation_split.ratio"),
        (40, {"validation_file": "file-x", "extra_body": {"validation_split": {}}}, "validation_split"),
    ],
)
def test_what_cannot_be_split_is_refused_and_leaves_nothing(
    client: OpenAI, database: Database, examples: int, parameters: dict[str, Any], param: str
) -> None:
    file = upload(client, training_bytes(examples))
    for dry_run in (False, True):
        body = parameters.get("extra_body", {}) | {"dry_run": dry_run}
        with pytest.raises(openai.BadRequestError) as refused:
            create(client, training_file=file, **parameters | {"extra_body": body})
        assert refused.value.param == param
    with database.reader() as session:
        assert (session.query(File).count(), session.query(FineTuningJob).count()) == (1, 0)


def test_ten_examples_are_left_at_least(client: OpenAI) -> None:
    assert create(
        client, training_file=upload(client, training_bytes(11)), validation_file="auto"
    ).status == ("queued")


def test_a_job_sent_again_is_split_once(client: OpenAI, database: Database, settings: Settings) -> None:
    file = upload(client, training_bytes(40))
    key = {"Idempotency-Key": "split-once"}
    jobs = [
        create(client, training_file=file, validation_file="auto", extra_headers=key).id for _ in range(2)
    ]
    assert jobs[0] == jobs[1]
    with database.reader() as session:
        assert session.query(File).count() == 3
    assert list((settings.storage_root / "tmp").iterdir()) == []


def test_deleted_parts_stay_while_their_job_needs_them(
    client: OpenAI, database: Database, settings: Settings
) -> None:
    from app.storage import open_storage

    file = upload(client, training_bytes(40))
    job = create(client, training_file=file, validation_file="auto")
    rest: str = job.to_dict()["validation_split"]["training_file"]  # pyright: ignore
    client.files.delete(rest)
    with database.reader() as session:
        assert find_orphans(session, open_storage(settings), age_seconds=-1).unnamed == []


lines_of_any_file = st.lists(
    st.tuples(st.sampled_from(["a", "A", " a", "b", "c d", "c  D", "é", "e\u0301"]), st.integers(0, 30)),
    min_size=1,
    max_size=60,
)


@given(
    lines=lines_of_any_file,
    share=st.floats(0.01, 0.5),
    seed=st.integers(0, 2**31 - 1),
    at_least=st.integers(1, 10),
)
def test_equal_examples_stay_together_whatever_the_file(
    lines: list[tuple[str, int]], share: float, seed: int, at_least: int
) -> None:
    written = "".join(chat_line(f"{text} {number}", f"{number % 3}") + "\n" for text, number in lines)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.jsonl"
        path.write_text(written, "utf-8")
        request = SplitRequest(share=share, seed=seed)
        try:
            choice = choose(path, request, at_least)
        except InvalidRequestError as error:
            assert (error.body.code, error.body.param) == ("too_few_examples", "validation_file")
            return
        assert choose(path, request, at_least) == choice
    keys = [
        " ".join(unicodedata.normalize("NFKC", f"{text} {number}").casefold().split())
        for text, number in lines
    ]
    held = {keys[line - 1] for line in choice.held_out}
    kept = {key for line, key in enumerate(keys, start=1) if line not in choice.held_out}
    assert not held & kept
    assert len(held) == int(share * len(set(keys)) + 0.5)
    assert choice.examples == len(lines) - len(choice.held_out) >= at_least
