"""Checkpoints: folders that appear only when complete.

A folder is first written as `tmp-…` and every file is fsynced, `manifest.json` with its SHA-256 sums last;
then it is renamed. This module imports no torch, as the worker verifies what the trainer wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.core.fsync import fsync_folder
from workers.crash_points import reach

MANIFEST = "manifest.json"


class DamagedCheckpointError(Exception):
    """A checkpoint differs from what was written; the message says where."""


def save_checkpoint(parent: Path, step: int, files: Mapping[str, bytes], *, first_step: int) -> Path:
    """Write `step-<n>` under `parent` and return it; an intact one that exists is kept.

    The checkpoint contains the metrics of every step from `first_step` on.

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
        shutil.rmtree(final, ignore_errors=True)  # it exists only if it is damaged
        aside.rename(final)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    reach("checkpoint.after_rename")
    fsync_folder(parent)
    return final


def verify(checkpoint: Path) -> str | None:
    """Return what is wrong with the checkpoint, or None if every file is as it was written."""
    try:
        first_step_of(checkpoint)
    except DamagedCheckpointError as damage:
        return str(damage)
    return None


def first_step_of(checkpoint: Path) -> int:
    """Return the first step that the checkpoint contains the metrics of.

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
    """Remove a checkpoint; what a crash leaves of it does not count as a checkpoint."""
    aside = checkpoint.with_name(f"tmp-{checkpoint.name}")
    checkpoint.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
