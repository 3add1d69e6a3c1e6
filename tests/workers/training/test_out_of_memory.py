"""Training that does not fit in memory continues in smaller micro-batches, or ends at once with a reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI
from safetensors.torch import load_file
from torch import Tensor

from app.core.database import Database
from app.core.settings import Settings
from app.fine_tuning.models import FineTuningJob
from app.fine_tuning.packing import Limits
from tests.support.examples import Lines, colours
from tests.support.starved_trainer import starved_logits
from tests.support.trainer import with_
from tests.support.training_files import chat_line, training_bytes
from tests.support.training_loop import train
from tests.support.worker import create, ended, run_worker
from workers.training import learning, limits, model
from workers.training.failure import explain
from workers.training.layouts.packed import PackedBatch
from workers.training.protocol import Finished, Progress, Started, Step, TrainingSpec, Warned


@pytest.fixture
def base(base_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> model.WarmBase:
    """In fp32, so that the order of a sum hardly matters."""
    torch.set_num_threads(1)
    monkeypatch.setattr(model, "compute_dtype", lambda device: torch.float32)
    return model.load_warm_base(base_model_dir)


def losses(said: list[Progress]) -> list[float | None]:
    return [message.metrics.train_loss for message in said if isinstance(message, Step)]


def valid_losses(said: list[Progress]) -> list[float]:
    found = [message.metrics.full_valid_loss for message in said if isinstance(message, Step)]
    return [loss for loss in found if loss is not None]


def adapter(said: list[Progress]) -> dict[str, Tensor]:
    assert isinstance(said[-1], Finished), said[-1]
    return load_file(Path(said[-1].path) / "adapter_model.safetensors")


def padded_tokens(batch: PackedBatch) -> int:
    examples, longest = batch.key_rows.shape
    return examples * longest


def too_large(tries: list[int]) -> Callable[..., Tensor]:
    """No room for more than two examples at once."""

    def logits(model: Any, batch: PackedBatch) -> Tensor:
        tries.append(padded_tokens(batch))
        return starved_logits(210, model, batch)

    return logits


def in_a_later_micro_batch(tries: list[int]) -> Callable[..., Tensor]:
    """The second micro-batch of the first batch fails, when the first has left its gradient."""

    def logits(model: Any, batch: PackedBatch) -> Tensor:
        tries.append(padded_tokens(batch))
        return starved_logits(0 if len(tries) == 2 else 1000, model, batch)

    return logits


@pytest.mark.parametrize(
    ("failing", "tokens"),
    [(too_large, 2048), (in_a_later_micro_batch, 210)],
    ids=["too large", "in a later micro-batch"],
)
def test_smaller_micro_batches_make_the_same_steps(
    failing: Callable[[list[int]], Any],
    tokens: int,
    spec: TrainingSpec,
    base: model.WarmBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    undisturbed = train(with_(spec), base)
    assert not any(isinstance(message, Warned) for message in undisturbed)

    tries: list[int] = []
    most = Limits(tokens=tokens, targets=1000)
    monkeypatch.setattr(limits, "batch_limits", lambda base, device: most)
    monkeypatch.setattr(learning, "target_logits", failing(tries))
    starved = train(with_(spec), base)

    assert losses(starved) == pytest.approx(losses(undisturbed), rel=1e-4)
    torch.testing.assert_close(adapter(starved), adapter(undisturbed), rtol=1e-2, atol=1e-4)
    # It is said before the first step, and the limit is kept to from there on.
    kinds = [type(message) for message in starved]
    assert kinds[:3] == [Started, Warned, Step]
    assert kinds.count(Warned) == 1, "once: what failed is not tried again in the same size"
    [warning] = [message for message in starved if isinstance(message, Warned)]
    [limit] = map(int, re.findall(r"at most (\d+) tokens", warning.message))
    failed = tries.index(max(tries)) if failing is too_large else 1
    assert max(tries[failed + 1 :]) <= limit < tries[failed]
    assert "Out of memory" in warning.message


def test_a_validation_file_is_measured_in_smaller_pieces_too(
    spec: TrainingSpec, base: model.WarmBase, jsonl: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it is measured at once where there is room, which is more than a batch of the training file."""
    with_validation = with_(spec, validation_file=str(jsonl(colours(20), "validation.jsonl")))
    undisturbed = train(with_(with_validation), base)

    monkeypatch.setattr(learning, "target_logits", lambda model, batch: starved_logits(500, model, batch))
    starved = train(with_(with_validation), base)

    assert valid_losses(starved) == pytest.approx(valid_losses(undisturbed), rel=1e-4)
    assert len(valid_losses(starved)) == 2


def test_an_example_that_does_not_fit_fails_at_once(
    spec: TrainingSpec, base: model.WarmBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def no_room(model: Any, batch: PackedBatch) -> Tensor:
        tries.append(len(batch.key_rows))
        return starved_logits(10, model, batch)

    monkeypatch.setattr(learning, "target_logits", no_room)
    with pytest.raises(RuntimeError) as caught:
        train(with_(spec), base)

    failed = explain(caught.value, spec)
    assert (failed.code, failed.param) == ("out_of_memory", None)
    assert "max_length" in failed.message
    assert tries[-1] == 1, "one example at a time was tried"
    # The base is as it was: with room again, the next job is trained.
    monkeypatch.undo()
    assert isinstance(train(with_(spec), base)[-1], Finished)


@pytest.mark.parametrize("kernel", ["asks in vain", "is killed"])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_job_learns_in_what_room_there_is_and_one_without_any_fails_without_retries(
    kernel: str, client: OpenAI, settings: Settings, database: Database, tmp_path: Path
) -> None:
    counter = tmp_path / "vmstat"
    counter.write_text("oom_kill 7\n")
    room = f"120:{counter}" if kernel == "is killed" else "120"
    fitting = create(client)
    answer = "leek " * 60
    too_long = create(client, training_bytes(24) + chat_line("Recite.", answer).encode())
    with run_worker(settings, tmp_path, TRAINER_ROOM=room):
        trained, failed = ended(client, fitting.id), ended(client, too_long.id)

    assert (trained.status, trained.error) == ("succeeded", None)
    events = client.fine_tuning.jobs.list_events(fitting.id, limit=100).data
    assert [event.level for event in events if "Out of memory" in event.message] == ["warn"]

    assert (failed.status, failed.error.code) == ("failed", "out_of_memory")
    assert (failed.fine_tuned_model, failed.result_files) == (None, [])
    newest = client.fine_tuning.jobs.list_events(too_long.id).data[0]
    assert (newest.level, newest.message) == ("error", f"The job failed: {failed.error.message}")
    with database.reader() as session:
        row = session.get_one(FineTuningJob, too_long.id)
    assert (row.lease_epoch, row.attempts_failed) == (1, 0)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_ranks_start_anew_with_smaller_micro_batches(
    client: OpenAI, settings: Settings, tmp_path: Path
) -> None:
    """One that runs out of memory leaves the others in the middle of a step."""
    job = create(client, extra_body={"gpus": 2})
    with run_worker(settings, tmp_path, TRAINER_ROOM="80", TOQUE_TRAINING_GPUS="2"):
        trained = ended(client, job.id)
    assert (trained.status, trained.error) == ("succeeded", None)
    events = client.fine_tuning.jobs.list_events(job.id, limit=100).data
    assert [event.message for event in events if event.level == "warn" and "memory" in event.message] == [
        "Out of memory: the trainer restarts with smaller micro-batches"
    ]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_base_that_does_not_fit_fails_the_job_at_once(
    client: OpenAI, settings: Settings, tmp_path: Path
) -> None:
    """Smaller micro-batches would not help."""
    job = create(client, extra_body={"gpus": 2})
    with run_worker(settings, tmp_path, TRAINER_ROOM="0", TOQUE_TRAINING_GPUS="2"):
        failed = ended(client, job.id)
    assert failed.error is not None
    assert (failed.status, failed.error.code) == ("failed", "out_of_memory")
    events = client.fine_tuning.jobs.list_events(job.id, limit=100).data
    assert not [event.message for event in events if event.level == "warn"]
