"""Virtual environments of the servers that tests run, each with packages of its own."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

CACHE = Path.home() / ".cache" / "toque-tests"


def server_environment(name: str, requirements: Path) -> Path:
    """The folder of the environment, which is installed unless it is there with these requirements."""
    folder = CACHE / name / hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    complete = folder / "complete"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # one of the processes that run tests installs it
        if complete.exists():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "pip"), "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--require-hashes", "--requirement", str(requirements)], check=True)
        complete.touch()
    return folder
