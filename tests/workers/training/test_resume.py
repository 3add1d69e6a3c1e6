"""A resumed job is the job that an uninterrupted one would have been: same steps, same weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest
from safetensors.torch import load_file

from tests.support.checkpoints import newest_resumable
from tests.support.examples import Lines, colours
from tests.support.trainer import Child, losses
from workers.training.checkpoint import save_checkpoint, verify
from workers.training.protocol import Checkpoint, Finished, Started, Step, Stopped, TrainingSpec


def test_a_stopped_job_goes_on_to_the_same_weights(
    child: Child,
    spec: TrainingSpec,
    jsonl: Lines,
    tmp_path: Path,
) -> None:
    valid = str(jsonl(colours(6), "valid.jsonl"))
    spec = msgspec.structs.replace(spec, validation_file=valid)
    whole = child.train(msgspec.structs.replace(spec, output_dir=str(tmp_path / "whole" / "1")))
    first = child.train(spec, stop_after=3)
    assert isinstance(first[-1], Stopped)
    stopped_at = first[-1].step
    assert 3 <= stopped_at < 10
    folder = newest_resumable(Path(spec.output_dir).parent, stopped_at)
    assert folder.checkpoint is not None
    assert folder.checkpoint.name == f"step-{stopped_at}"
    again = msgspec.structs.replace(
        spec, output_dir=str(Path(spec.output_dir).parent / "2"), resume_from=str(folder.checkpoint)
    )
    second = child.train(again)
    started = next(message for message in second if isinstance(message, Started))
    assert started.resumed_step == stopped_at
    told_again_from = 1 if stopped_at <= 5 else 6  # the checkpoint before is the one of the first epoch
    assert list(losses(second)) == list(range(told_again_from, 11))
    assert losses(first) | losses(second) == losses(whole)
    assert [m.metrics for m in second if isinstance(m, Checkpoint)][-1] == [
        m.metrics for m in whole if isinstance(m, Checkpoint)
    ][-1]
    ends = [said[-1] for said in (whole, second)]
    assert all(isinstance(end, Finished) for end in ends)
    assert ends[0].trained_tokens == ends[1].trained_tokens
    weights = [load_file(Path(end.path) / "adapter_model.safetensors") for end in ends]
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_a_job_that_was_trained_but_not_published_only_says_so(child: Child, spec: TrainingSpec) -> None:
    whole = child.train(spec)
    again = child.train(
        msgspec.structs.replace(spec, resume_from=whole[-1].path, output_dir=spec.output_dir + "b")
    )
    assert [type(message) for message in again] == [Started, *[Step] * 5, Checkpoint, Finished]
    assert again[-1].path == whole[-1].path
    assert again[-1].trained_tokens == whole[-1].trained_tokens


def test_checkpoints_by_time(child: Child, spec: TrainingSpec) -> None:
    child.train(msgspec.structs.replace(spec, checkpoint_seconds=1e-9))
    saved = sorted(
        Path(spec.output_dir, "checkpoints").iterdir(), key=lambda folder: int(folder.name.split("-")[1])
    )
    # At the end of an epoch, for good; within one, the last two.
    assert [folder.name for folder in saved] == ["step-5", "step-8", "step-9", "step-10"]
    assert all(verify(folder) is None for folder in saved)


def test_checkpoints_by_steps_are_served_beside_those_of_the_epochs(
    child: Child, spec: TrainingSpec, jsonl: Lines
) -> None:
    hyperparameters = msgspec.structs.replace(spec.hyperparameters, checkpoint_steps=2)
    valid = str(jsonl(colours(6), "valid.jsonl"))
    said = child.train(msgspec.structs.replace(spec, hyperparameters=hyperparameters, validation_file=valid))
    checkpoints = [message for message in said if isinstance(message, Checkpoint)]
    assert [checkpoint.metrics.step for checkpoint in checkpoints] == [2, 4, 5, 6, 8, 10]
    assert all(verify(Path(checkpoint.path)) is None for checkpoint in checkpoints), "none is pruned"
    assert all(checkpoint.metrics.valid_loss is not None for checkpoint in checkpoints)
    whole = [c.metrics.step for c in checkpoints if c.metrics.full_valid_loss is not None]
    assert whole == [5, 10]


@pytest.fixture
def job_folder(tmp_path: Path) -> Path:
    """Two attempts with checkpoints at steps 5, 10 and 15."""
    for attempt, steps in ((1, (5, 10)), (2, (15,))):
        for step in steps:
            save_checkpoint(
                tmp_path / str(attempt) / "checkpoints",
                step,
                {"weights": b"w" * 100, "state": b"s"},
                first_step=step - 4,
            )
    return tmp_path


def test_the_newest_that_verifies_is_used(job_folder: Path) -> None:
    newest = job_folder / "2" / "checkpoints" / "step-15"
    assert newest_resumable(job_folder, 15) == newest_resumable(job_folder, 11) == (newest, [])
    (newest / "weights").write_bytes(b"w" * 99)
    middle = job_folder / "1" / "checkpoints" / "step-10"
    assert newest_resumable(job_folder, 15) == (middle, ["step 15: weights does not match its checksum"])
    (middle / "state").unlink()
    (newest / "manifest.json").write_text("{")
    oldest = job_folder / "1" / "checkpoints" / "step-5"
    found = newest_resumable(job_folder, 15)
    assert found.checkpoint == oldest
    assert found.damaged == ["step 15: its manifest cannot be read", "step 10: state is missing"]
    shutil.rmtree(oldest)
    (job_folder / "1" / "checkpoints" / "tmp-step-20").mkdir()
    assert newest_resumable(job_folder, 15).checkpoint is None
    assert newest_resumable(job_folder / "nothing", 0) == (None, [])


def test_no_step_and_no_checkpoint_is_left_out_of_the_record(job_folder: Path) -> None:
    """The checkpoint of step 15 tells again about the steps from 11 on, but of no other checkpoint."""
    steps = [newest_resumable(job_folder, recorded).checkpoint for recorded in (11, 10, 6, 5, 1, 0)]
    assert [folder.name if folder else None for folder in steps] == [
        "step-15",
        "step-10",
        "step-10",
        "step-5",
        "step-5",
        "step-5",
    ]


def test_a_manifest_names_every_file(job_folder: Path) -> None:
    folder = job_folder / "2" / "checkpoints" / "step-15"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["step"] == 15
    assert set(manifest["sha256"]) == {"weights", "state"}
