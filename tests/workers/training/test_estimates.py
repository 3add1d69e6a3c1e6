"""Estimates count what the trainer does: its packing, its steps, what it records, with hold-outs too."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI

from app.core.database import Database
from app.core.settings import Settings
from app.datasets.chat_template import TokenizedExample
from app.fine_tuning.models import FineTuningJob, TrainingSpeed, Worker
from app.fine_tuning.packing import Limits, total, work_by_micro_batch, work_of_job
from app.fine_tuning.preflight.estimates import Geometry
from tests.support.trainer import Child
from tests.support.training_files import training_bytes
from tests.support.waiting import wait_until
from tests.support.worker import create, ended, run_worker
from workers.training.dataset import TrainingExample, load_examples, micro_batches
from workers.training.layouts.packed import pack
from workers.training.layouts.padded import pad
from workers.training.protocol import Finished, Started, Step, TrainingSpec

sequences = st.builds(
    lambda tokens, more, targets: TokenizedExample(
        [0, *tokens, *more], [False] * (1 + len(tokens) + len(more) - targets) + [True] * targets
    ),
    st.lists(st.integers(0, 2), max_size=6),
    st.lists(st.integers(3, 9), min_size=3, max_size=40),
    st.integers(1, 3),
)


examples = st.builds(TrainingExample, st.tuples(sequences) | st.tuples(sequences, sequences))


@given(st.lists(examples, min_size=1, max_size=12), st.integers(1, 200), st.integers(1, 12))
def test_micro_batches_are_counted_as_the_trainer_packs_them(
    examples: list[TrainingExample], tokens: int, targets: int
) -> None:
    limits = Limits(tokens, targets)
    parts = [[one.sequences for one in each] for each in micro_batches(examples, limits)]
    packed = [pack(each) for each in parts]
    counted = work_by_micro_batch([one.sequences for one in examples], limits, "packed")
    assert [each.tokens for each in counted] == [batch.input_ids.shape[1] for batch in packed]
    assert [each.targets for each in counted] == [len(batch.targets) for batch in packed]
    assert [each.rows for each in counted] == [batch.shared + batch.query_rows.numel() for batch in packed]
    assert [each.scores for each in counted] == [
        batch.shared**2 + batch.query_rows.numel() * batch.key_rows.shape[1] for batch in packed
    ]
    assert [each.rows - each.padding for each in counted] == [each.tokens for each in counted]

    padded = [pad(each) for each in parts]
    counted = work_by_micro_batch([one.sequences for one in examples], limits, "padded")
    assert [each.tokens for each in counted] == [batch.input_ids.numel() for batch in padded]
    assert [each.rows for each in counted] == [batch.input_ids.numel() for batch in padded]
    assert [each.scores for each in counted] == [
        batch.input_ids.numel() * batch.input_ids.shape[1] for batch in padded
    ]
    assert [each.targets for each in counted] == [len(batch.targets) for batch in padded]


def test_the_trainer_says_what_it_will_do_and_what_it_took(spec: TrainingSpec, child: Child) -> None:
    said = child.train(spec)
    started, finished = said[0], said[-1]
    assert isinstance(started, Started) and isinstance(finished, Finished)
    steps = [message for message in said if isinstance(message, Step)]
    assert started.training.steps == len(steps) == 10
    assert started.training.checkpoints == 2
    assert 2 * started.tokens_per_epoch >= started.training.tokens > 0
    assert started.evaluation.tokens == 0
    assert 0 < started.resident_memory_bytes <= finished.peak_memory_bytes
    assert started.value_bytes in (2, 4)
    again = child.train(spec)[-1]
    assert isinstance(again, Finished)
    assert again.peak_memory_bytes < 1.2 * finished.peak_memory_bytes, "the peak is each job's own"


def test_the_adapter_is_as_large_as_reckoned(base_model_dir: Path, spec: TrainingSpec, child: Child) -> None:
    started = child.train(spec)[0]
    assert isinstance(started, Started)
    assert Geometry.load(base_model_dir).trainable(4) == started.trainable_parameters


def test_validation_examples_and_checkpoints_count(base_model_dir: Path, spec: TrainingSpec) -> None:
    from app.datasets.chat_template import ChatTemplate

    training = load_examples(Path(spec.training_file), ChatTemplate.load(base_model_dir), 400)
    parts = [example.sequences for example in training]
    limits = Limits(2**11, 2**11)
    work = work_of_job(
        parts, parts[:4], limits, "packed", n_epochs=3, batch_size=4, checkpoint_steps=2, seed=1
    )
    assert work.training.steps == 15
    # At steps 2, 4, …, 14, and at the ends of epochs, 5, 10 and 15; some are looked at then, and every 5.
    assert work.training.checkpoints == 9
    whole = total(work_by_micro_batch(parts[:4], limits, "packed"))
    assert work.evaluation.tokens == whole.tokens * (3 + 9)


@pytest.mark.one_database
def test_a_job_with_a_hold_out_learns_from_the_rest_and_records_its_speed(
    client: OpenAI, settings: Settings, database: Database, tmp_path: Path
) -> None:
    with run_worker(settings, tmp_path):
        first = create(
            client,
            training_bytes(40),
            validation_file="auto",
            extra_body={"validation_split": {"share": 0.2}},
        )
        job = ended(client, first.id)
        assert job.status == "succeeded", job.error
        split = job.to_dict()["validation_split"]
        assert (split["examples"], split["held_out"]) == (32, 8)
        messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
        assert any("32 examples" in message for message in messages), messages
        newest = client.fine_tuning.jobs.checkpoints.list(job.id).data[0]
        assert newest.metrics.full_valid_loss is not None, "it was judged by the hold-out"
        with database.reader() as session:
            speed = session.get_one(TrainingSpeed, job.id)
            worker = session.query(Worker).one()
            assert (speed.base_model, speed.device, speed.worker_id) == ("tiny", worker.device, worker.id)
            assert worker.device_memory_bytes > 2**30
        assert speed.tokens == job.trained_tokens
        assert speed.training["steps"] == 16
        assert speed.evaluation["tokens"] > 0
        assert 0 < speed.seconds < 60
        assert 0 < speed.startup_seconds < 60
        assert 0 < speed.resident_memory_bytes <= speed.peak_memory_bytes

        asked = create(client, training_bytes(40), extra_body={"dry_run": True}).to_dict()
        assert asked["time"]["basis"]["jobs"] == 1
        assert asked["time"]["startup_seconds"] <= 1.0, "its worker is warm"
        assert asked["memory"]["device_bytes"] == worker.device_memory_bytes
        second = create(client, training_bytes(40), hyperparameters={"n_epochs": 50})
        expected = wait_until(lambda: _expected(database, second.id), "it is expected to end")
        assert expected > second.created_at
        client.fine_tuning.jobs.cancel(second.id)


def _expected(database: Database, job_id: str) -> float | None:
    with database.reader() as session:
        return session.get_one(FineTuningJob, job_id).estimated_finish
