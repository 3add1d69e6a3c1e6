"""The files of an attempt on this machine: what its trainer reads, and the checkpoints that it writes."""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from app.storage.base import DamagedContentError, Storage
from workers.crash_points import reach
from workers.training.checkpoint import DamagedCheckpointError, first_step_of

_STEP = re.compile(r"step-(\d+)")


class Resumable(NamedTuple):
    """The checkpoint to resume from, and the newer ones that are damaged."""

    checkpoint: Path | None
    damaged: list[str]
    """Step and reason of each damaged checkpoint."""


class AttemptFiles:
    """A context manager: what the trainer reads stays on this machine until it ends.

    The trainer writes its checkpoints here, and they are published for whichever machine resumes the job.
    """

    def __init__(self, storage: Storage, job_key: str, epoch: int) -> None:
        """`job_key` is where the storage has the job's attempts: `jobs/<id>`."""
        self._storage = storage
        self._job, self._epoch, self._attempt = job_key, epoch, f"{job_key}/{epoch}"
        self._stack = ExitStack()
        self._keys: dict[Path, str] = {}
        """The key of every checkpoint that is published, by its folder on this machine."""
        self.folder = Path()
        """Where the trainer writes."""

    def __enter__(self) -> AttemptFiles:
        self.folder = self._stack.enter_context(self._storage.workspace(self._attempt))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def path_of(self, key: str) -> Path:
        """Have a file or folder of the storage on this machine.

        Raises:
            OSError: it is not in the storage, or damaged there, or the storage cannot be reached now.
        """
        return self._stack.enter_context(self._storage.local(key))

    def newest_resumable(self, recorded_step: int) -> Resumable:
        """Return the newest intact checkpoint of any attempt that leaves no gap in the job's log.

        An attempt that lost its lease may have saved steps that were not recorded. A checkpoint has the
        metrics of its own latest steps, so that these can be recorded again, but not of those before them.

        Raises:
            StorageUnavailableError: the storage cannot be reached now.
        """
        found = [
            (int(match[1]), entry.key)
            for entry in self._storage.list(f"{self._job}/*/checkpoints/*")
            if (match := _STEP.fullmatch(PurePosixPath(entry.key).name))
        ]
        damaged: list[str] = []
        for step, key in sorted(found, reverse=True):
            try:
                folder = self._fetch(key)
                first_step = first_step_of(folder)
            except DamagedCheckpointError as damage:
                damaged.append(f"step {step}: {damage}")
                continue
            # Steps before `first_step` are known to be recorded only if that step, or a later one, is.
            if first_step <= max(recorded_step, 1):
                return Resumable(folder, damaged)
        return Resumable(None, damaged)

    def publish(self, folder: Path) -> str:
        """Publish a checkpoint and return its key; forget those that the trainer has removed since.

        Raises:
            FileNotFoundError: the trainer has removed this one, too.
            StorageUnavailableError: the storage cannot be reached now.
        """
        if folder not in self._keys:
            key = f"{self._attempt}/{folder.relative_to(self.folder).as_posix()}"
            reach("attempt_files.before_publish")
            self._storage.publish_folder(folder, key)
            reach("attempt_files.after_publish")
            self._keys[folder] = key
        for gone in [each for each in self._keys if not each.exists()]:
            self._storage.remove(self._keys.pop(gone))
        if folder not in self._keys:
            raise FileNotFoundError(folder)
        return self._keys[folder]

    def remove_earlier(self, served: Collection[str]) -> None:
        """Remove what earlier attempts have saved, except what is `served` and what this one resumed from.

        This attempt must have published a checkpoint, so that two are left: one may turn out to be damaged.

        Raises:
            StorageUnavailableError: the storage cannot be reached now.
        """
        kept = {*served, *self._keys.values()}
        for entry in self._storage.list(f"{self._job}/*/checkpoints/*"):
            attempt = PurePosixPath(entry.key).parent.parent.name
            if attempt.isdecimal() and int(attempt) < self._epoch and entry.key not in kept:
                self._storage.remove(entry.key)

    def _fetch(self, key: str) -> Path:
        """Have an earlier checkpoint on this machine until the attempt ends.

        Raises:
            DamagedCheckpointError: it is not as it was written.
            StorageUnavailableError: the storage cannot be reached now.
        """
        try:
            folder = self.path_of(key)
        except FileNotFoundError:
            raise DamagedCheckpointError("manifest.json is missing") from None
        except DamagedContentError as error:
            raise DamagedCheckpointError(str(error)) from None
        self._keys[folder] = key
        return folder
