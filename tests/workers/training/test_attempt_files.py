"""The checkpoints of a job's attempts: which are removed, and which somebody needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.storage.local import LocalStorage
from workers.training.attempt_files import AttemptFiles
from workers.training.checkpoint import discard, save_checkpoint


def save(root: Path, epoch: int, step: int) -> Path:
    return save_checkpoint(root / f"job/{epoch}/checkpoints", step, {"weights": b"w"}, first_step=1)


def test_only_what_nobody_needs_of_earlier_attempts_is_removed(tmp_path: Path) -> None:
    for epoch, step in ((1, 3), (1, 6), (2, 7), (2, 8)):
        save(tmp_path, epoch, step)
    storage = LocalStorage(tmp_path)
    with AttemptFiles(storage, "job", 3) as files:
        assert files.newest_resumable(8).checkpoint == tmp_path / "job/2/checkpoints/step-8"
        files.publish(save(tmp_path, 3, 9))
        save(tmp_path, 4, 10)  # the job has been claimed again
        files.remove_earlier({"job/1/checkpoints/step-6"})
    assert {entry.key for entry in storage.list("job/*/checkpoints/*")} == {
        "job/1/checkpoints/step-6",
        "job/2/checkpoints/step-8",
        "job/3/checkpoints/step-9",
        "job/4/checkpoints/step-10",
    }


def test_what_the_trainer_has_removed_is_not_published(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    with AttemptFiles(storage, "job", 1) as files:
        published, unheard_of = save(tmp_path, 1, 1), save(tmp_path, 1, 2)
        files.publish(published)
        for folder in (published, unheard_of):
            discard(folder)
            with pytest.raises(FileNotFoundError):
                files.publish(folder)
        assert files.publish(save(tmp_path, 1, 3)) == "job/1/checkpoints/step-3"
