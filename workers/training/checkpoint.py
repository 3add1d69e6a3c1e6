"""Checkpoints: folders that are whole or not there, and which of them an attempt goes on from.

A folder is written aside as `tmp-…`, every file fsynced, `manifest.json` with SHA-256 sums last, then
renamed.
Imports no torch: the worker verifies what the trainer wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from app.storage.incoming import fsync_folder
from workers.crash_points import reach

MANIFEST = "manifest.json"
_STEP = re.compile(r"step-(\d+)")


class DamagedCheckpointError(Exception):
    """A checkpoint is not as it was written; the message says where."""


class Resumable(NamedTuple):
    """Where to go on, and which newer checkpoints are of no use."""

    checkpoint: Path | None
    damaged: list[str]
    """For people: name and reason."""


def save_checkpoint(parent: Path, step: int, files: Mapping[str, bytes], *, first_step: int) -> Path:
    """Writes `step-<n>` under `parent` and returns it; one that is there already is kept.

    It can tell about every step from `first_step` on.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    final, aside = parent / f"step-{step}", parent / f"tmp-step-{step}"
    if verify(final) is None:
        return final
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        for name, content in files.items():
            reach(f"checkpoint.before_{name}")
            _write(aside / name, content)
        reach("checkpoint.before_manifest")
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        manifest = {"step": step, "first_step": first_step, "sha256": sums}
        _write(aside / MANIFEST, json.dumps(manifest, indent=2).encode())
        fsync_folder(aside)
        reach("checkpoint.before_rename")
        shutil.rmtree(final, ignore_errors=True)  # only one that is damaged comes this far
        aside.rename(final)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    reach("checkpoint.after_rename")
    fsync_folder(parent)
    return final


def verify(checkpoint: Path) -> str | None:
    """What is wrong with it; None if every file is as it was written."""
    try:
        _first_step(checkpoint)
    except DamagedCheckpointError as damage:
        return str(damage)
    return None


def _first_step(checkpoint: Path) -> int:
    """The first step that the checkpoint tells about.

    Raises:
        DamagedCheckpointError: a file is not as it was written.
    """
    try:
        manifest: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_bytes())
        for name, expected in manifest["sha256"].items():
            with (checkpoint / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    raise DamagedCheckpointError(f"{name} does not match its checksum")
        return int(manifest["first_step"])
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{Path(str(error.filename)).name} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError("its manifest cannot be read") from error


def discard(checkpoint: Path) -> None:
    """Removes a checkpoint; what a crash leaves of it is not taken for one."""
    aside = checkpoint.with_name(f"tmp-{checkpoint.name}")
    checkpoint.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def newest_resumable(job_folder: Path, recorded_step: int) -> Resumable:
    """The newest checkpoint in any attempt's folder that verifies and leaves no gap in the job's log.

    An attempt that lost its job may have saved steps that are not on the record: a checkpoint tells about
    its own latest steps again, but not about those before.
    """
    found = [
        (int(match[1]), folder)
        for folder in job_folder.glob("*/checkpoints/*")
        if (match := _STEP.fullmatch(folder.name))
    ]
    damaged: list[str] = []
    for step, folder in sorted(found, key=lambda pair: (pair[0], pair[1]), reverse=True):
        try:
            first_step = _first_step(folder)
        except DamagedCheckpointError as damage:
            damaged.append(f"step {step}: {damage}")
            continue
        # The step before the first was a checkpoint too: only a step after it tells that it is on the record.
        if first_step <= max(recorded_step, 1):
            return Resumable(folder, damaged)
    return Resumable(None, damaged)


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
