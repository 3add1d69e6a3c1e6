"""Several processes train as one does: the same losses, the same checkpoints; none outlives the others."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import OpenAI

from app.core.settings import Settings
from tests.support import exact_trainer
from tests.support.examples import Lines, colours, preference_pairs
from tests.support.tiny_bases import write_tiny_base
from tests.support.trainer import Child, losses, with_
from tests.support.waiting import wait_until
from tests.support.worker import check_record, create, ended, run_worker, trainer_of
from workers.training.checkpoint import verify
from workers.training.protocol import Checkpoint, Failed, Finished, Started, Stopped, TrainingSpec

SECONDS = 60
"""How soon nothing may be left of an attempt that lost a process; a collective waits for an hour."""


def exact(folder: Path) -> list[str]:
    return [sys.executable, "-m", exact_trainer.__name__, str(folder)]


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the trainers write how many bytes they hold."""
    return tmp_path_factory.mktemp("held")


@pytest.fixture(scope="module")
def alone(held: Path) -> Iterator[Child]:
    child = Child(exact(held))
    yield child
    assert child.close() == 0


@pytest.fixture(scope="module")
def pair(held: Path) -> Iterator[Child]:
    child = Child(exact(held))
    yield child
    [other] = ranks_of(child)
    assert child.close() == 0
    assert not other.is_running()


@pytest.fixture
def spec(spec: TrainingSpec, jsonl: Lines) -> TrainingSpec:
    """Twenty-two steps of five examples, the last of an epoch of two, with evaluations.

    Where memory is halved, a batch takes several micro-batches, and the ranks have unequal numbers of them.
    """
    files = {
        "training_file": str(jsonl(colours(52))),
        "validation_file": str(jsonl(colours(7), "valid.jsonl")),
    }
    return with_(spec, n_epochs=2, batch_size=5, halvings=1, **files)


def ranks_of(child: Child) -> list[psutil.Process]:
    return psutil.Process(child.process.pid).children()


def metrics(said: list[Any]) -> list[float]:
    """All figures of all steps, in order."""
    values = (getattr(message, "metrics", None) for message in said if not isinstance(message, Checkpoint))
    return [
        value
        for each in values
        if each is not None
        for name in each.__struct_fields__
        if (value := getattr(each, name)) is not None
    ]


def check_shares(held: Path) -> None:
    """That each of two ranks has loaded half of what one alone has, or hardly more."""
    shares = [tuple(map(int, (held / f"{rank} of 2").read_text().split())) for rank in (0, 1)]
    whole = int((held / "0 of 1").read_text().split()[0])
    assert all(0 < share <= 0.55 * whole and of == whole for share, of in shares)


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_two_processes_learn_what_one_does(
    alone: Child, pair: Child, spec: TrainingSpec, held: Path, quantization: str
) -> None:
    spec = with_(spec, quantization=quantization)
    one, two = alone.train(spec), pair.train(with_(spec, gpus=2))
    assert isinstance(two[-1], Finished), two[-1]
    assert [message.device for message in two if isinstance(message, Started)] == ["2 x cpu"]
    assert list(losses(two)) == list(range(1, 23))
    assert metrics(two) == pytest.approx(metrics(one), abs=1e-5)
    assert one[-1].trained_tokens == two[-1].trained_tokens
    for sample, expected in zip(two[-1].samples, one[-1].samples, strict=True):
        assert sample.trained == pytest.approx(expected.trained, abs=1e-4)
        assert sample.base == pytest.approx(expected.base, abs=1e-4)
    check_shares(held)


@pytest.mark.parametrize(
    "family", ["qwen3_moe", "gemma2", "tiny"], ids=["experts", "padded", "NF4 attention"]
)
def test_every_kind_of_base_is_sharded(
    alone: Child,
    pair: Child,
    spec: TrainingSpec,
    held: Path,
    jsonl: Lines,
    tmp_path: Path,
    family: str,
) -> None:
    if (
        family == "tiny"
    ):  # as in the other tests, with tied embeddings; layers without adapters are packed, too
        changes: dict[str, Any] = {"quantization": "nf4", "target_modules": ["attention"]}
    else:
        changes = {"base_model_dir": str(write_tiny_base(family, tmp_path / family)), "learning_rate": 1e-3}
    spec = with_(spec, training_file=str(jsonl(colours(12))), n_epochs=1, **changes)
    one, two = alone.train(spec), pair.train(with_(spec, gpus=2))
    assert isinstance(two[-1], Finished), two[-1]
    [started] = [message for message in two if isinstance(message, Started)]
    assert started.layout == ("padded" if family == "gemma2" else "packed")
    assert len(losses(two)) == 3
    assert metrics(two) == pytest.approx(metrics(one), abs=1e-4)
    check_shares(held)


def test_a_batch_of_one_example_leaves_a_rank_without_work(
    alone: Child, pair: Child, spec: TrainingSpec
) -> None:
    spec = with_(spec, batch_size=1, n_epochs=1, halvings=0)
    one, two = alone.train(spec), pair.train(with_(spec, gpus=2))
    assert isinstance(two[-1], Finished), two[-1]
    assert metrics(two) == pytest.approx(metrics(one), abs=1e-5)


def test_preference_pairs_are_dealt_whole_with_their_references(
    alone: Child, pair: Child, spec: TrainingSpec, jsonl: Lines
) -> None:
    training = str(jsonl(preference_pairs(13), "pairs.jsonl"))
    spec = with_(spec, method="dpo", beta=0.1, training_file=training, validation_file=training)
    one, two = alone.train(spec), pair.train(with_(spec, gpus=2))
    assert isinstance(two[-1], Finished), two[-1]
    assert metrics(two) == pytest.approx(metrics(one), abs=1e-5)


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_a_job_resumes_on_another_number_of_gpus(
    alone: Child, pair: Child, spec: TrainingSpec, first: int, then: int
) -> None:
    children = {1: alone, 2: pair}
    whole = alone.train(spec)
    before = children[first].train(begun := with_(spec, gpus=first), stop_after=7)
    assert isinstance(before[-1], Stopped), before[-1]
    checkpoint = Path(begun.output_dir, "checkpoints", f"step-{before[-1].step}")
    assert verify(checkpoint) is None
    after = children[then].train(with_(spec, gpus=then, resume_from=str(checkpoint)))
    started = next(message for message in after if isinstance(message, Started))
    assert started.resumed_step == before[-1].step >= 7
    assert isinstance(after[-1], Finished), after[-1]
    both = losses(before) | losses(after)
    assert list(both) == list(range(1, 23))
    assert both == pytest.approx(losses(whole), abs=1e-5)


def test_dropout_is_the_same_after_resuming_on_as_many(pair: Child, spec: TrainingSpec) -> None:
    spec = with_(spec, gpus=2, lora_dropout=0.3, n_epochs=1)
    whole = pair.train(spec)
    before = pair.train(begun := with_(spec), stop_after=5)
    checkpoint = Path(begun.output_dir, "checkpoints", f"step-{before[-1].step}")
    after = pair.train(with_(spec, resume_from=str(checkpoint)))
    assert losses(before) | losses(after) == losses(whole)


def test_ranks_start_anew_with_less_until_nothing_is_left_to_try(
    alone: Child, pair: Child, spec: TrainingSpec
) -> None:
    """A rank's share of a batch is three examples, computed one by one after two halvings."""
    spec = with_(spec, n_epochs=1)
    one = alone.train(spec)
    for halvings, recomputes in ((2, False), (3, True)):
        two = pair.train(with_(spec, gpus=2, halvings=halvings))
        [started] = [message for message in two if isinstance(message, Started)]
        assert started.activation_checkpointing == recomputes
        assert metrics(two) == pytest.approx(metrics(one), abs=1e-5)
    failed = pair.train(with_(spec, gpus=2, halvings=4))[-1]
    assert isinstance(failed, Failed)
    assert failed.code == "out_of_memory"
    assert isinstance(pair.train(with_(spec, gpus=2))[-1], Finished), "the ranks are in step"


@pytest.mark.one_database
def test_a_rank_that_dies_ends_the_attempt_at_once_and_the_next_goes_on(
    client: OpenAI, settings: Settings, tmp_path: Path
) -> None:
    first = create(client)
    job = create(client, hyperparameters={"n_epochs": 6}, extra_body={"gpus": 2})
    held = tmp_path / "held"  # by rank 1, so that rank 0 waits for it in a collective
    with run_worker(settings, tmp_path, hold_at=8, hold_rank=1, TOQUE_TRAINING_GPUS="2") as worker:
        assert ended(client, first.id).status == "succeeded"
        for victim in ("rank 1", "rank 0"):
            wait_until(held.exists, "it trains")
            trainer = trainer_of(worker)
            ranks = [trainer, *trainer.children()]
            assert len(ranks) == 2
            held.unlink()  # so that the next one is held, too
            began = time.monotonic()
            ranks[victim == "rank 1"].kill()
            _, alive = psutil.wait_procs(ranks, SECONDS)
            assert not alive, victim
            reason = "one of its ranks died" if victim == "rank 1" else "signal SIGKILL"
            end = f"The trainer died ({reason})"
            wait_until(lambda end=end: end in str(messages_of(client, job.id)), end, SECONDS)
            assert time.monotonic() - began < SECONDS
        wait_until(held.exists, "it trains")
        held.write_text("go on")
        done = ended(client, job.id)
        assert done.status == "succeeded", done.error
    check_record(client, done, steps=36)


def messages_of(client: OpenAI, job_id: str) -> list[str]:
    return [event.message for event in client.fine_tuning.jobs.list_events(job_id, limit=1000)]
