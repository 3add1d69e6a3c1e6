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

from app.files.storage import fsync_folder
from workers.crash_points import reach

MANIFEST = "manifest.json"
_STEP = re.compile(r"step-(\d+)")


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
        manifest: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_bytes())
        if not isinstance(manifest["first_step"], int):
            return "its manifest cannot be read"
        for name, expected in manifest["sha256"].items():
            with (checkpoint / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    return f"{name} does not match its checksum"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its manifest cannot be read"
    return None


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
        problem = verify(folder)
        if problem is not None:
            damaged.append(f"step {step}: {problem}")
        elif json.loads((folder / MANIFEST).read_bytes())["first_step"] <= recorded_step + 1:
            return Resumable(folder, damaged)
    return Resumable(None, damaged)


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
