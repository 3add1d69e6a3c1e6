"""Merges an adapter into its base model: `python -m workers.merged_model FOLDER --into DIR` writes a model
that needs no adapter, for vLLM, llama.cpp's converter or a hub.

One file of the base's weights is in memory at a time, and the merged model has the same files and tensor
names. It is written under a temporary name next to its target, then renamed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

from app.base_models.files import unready
from app.core.settings import Settings
from app.models.adapters.validation import WEIGHTS, AdapterError, LoraWeights, check_adapter, module_shapes
from app.models.catalogue import Catalogue

_OTHER_WEIGHTS = {".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"}
"""File types of weights that are not copied, since the merged weights are written as safetensors."""


class MergeError(Exception):
    """The model cannot be written; the message says why and what to do."""


def merge(adapter: Path, base: Path, target: Path, chat_template: str | None = None) -> None:
    """Writes the base model with the adapter's weights added to `target`, in bfloat16.

    With `chat_template`, the model gets that template instead of the base's.

    Raises:
        MergeError: the adapter does not fit the base, or the target cannot be written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise MergeError(f"{target} exists already; name a folder that does not")
    if "quantization_config" in _config(base):
        raise MergeError(f"{base} is quantized: an adapter can be merged into plain weights only")
    try:
        lora = check_adapter(adapter, module_shapes(base), None)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            model = Path(scratch) / "model"
            model.mkdir()
            for path in base.iterdir():
                if path.suffix == ".safetensors":
                    _merge_file(path, adapter / WEIGHTS, lora, model / path.name)
                elif path.is_file() and path.suffix not in _OTHER_WEIGHTS:
                    shutil.copyfile(path, model / path.name)
            if chat_template is not None:
                (model / "chat_template.jinja").write_text(chat_template, "utf-8")
            config = {name: value for name, value in _config(base).items() if name != "torch_dtype"}
            text = json.dumps(config | {"dtype": "bfloat16"}, indent=2, ensure_ascii=False)
            (model / "config.json").write_text(text + "\n", "utf-8")
            model.rename(target)
    except AdapterError as error:
        raise MergeError(f"the adapter in {adapter} cannot be merged: {error}") from error
    except OSError as error:
        raise MergeError(f"cannot read {adapter}, or write {target}: {error}") from error


def _merge_file(base: Path, adapter: Path, lora: LoraWeights, target: Path) -> None:
    # Imported here, so that `main` can explain that torch is missing.
    import safetensors.torch  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415

    merged: dict[str, torch.Tensor] = {}
    # The library has only partial annotations.
    with cast(Any, safe_open)(base, "pt") as weights, cast(Any, safe_open)(adapter, "pt") as halves:
        adapted = set(cast(list[str], halves.keys()))
        for name in cast(list[str], weights.keys()):
            tensor = cast(torch.Tensor, weights.get_tensor(name))
            half = f"base_model.model.{name.removesuffix('.weight')}.lora_{{}}.weight"
            if half.format("A") in adapted:
                a, b = (cast(torch.Tensor, halves.get_tensor(half.format(each))).float() for each in "AB")
                tensor = tensor.float().addmm_(b, a, alpha=lora.scale)
            merged[name] = tensor.bfloat16() if tensor.is_floating_point() else tensor
    try:
        cast(Any, safetensors.torch).save_file(merged, target, {"format": "pt"})
    except SafetensorError as error:  # also raised when the disk is full
        raise OSError(str(error)) from error
    target.chmod(0o644)


def _config(base: Path) -> dict[str, Any]:
    return json.loads((base / "config.json").read_text("utf-8"))


def _claimed_base(adapter: Path) -> str:
    """Returns the base model that the adapter's configuration names."""
    try:
        return str(json.loads((adapter / "adapter_config.json").read_bytes())["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m workers.merged_model", description="Merges an adapter into its base model."
    )
    parser.add_argument("adapter", type=Path, help="a folder with PEFT's two files")
    parser.add_argument("--base-model", help="its name in the catalogue, if the adapter does not say it")
    parser.add_argument("--into", type=Path, required=True, help="the folder to write")
    chosen = parser.parse_args(arguments)
    settings = Settings()
    name = chosen.base_model or _claimed_base(chosen.adapter)
    catalogue = Catalogue.load(settings)
    entry = catalogue.find(name)
    try:
        if entry is None:
            raise MergeError(
                f"{name!r} is not in the catalogue of base models, which has: {catalogue.names}. "
                "Name the adapter's base with --base-model"
            )
        base = settings.base_model_dir(entry)
        if problem := unready(base):
            raise MergeError(f"{problem}: run `toque models pull {entry.name}`")
        merge(chosen.adapter, base, chosen.into.absolute(), entry.chat_template_source)
    except ModuleNotFoundError as error:
        print(
            f"merging needs {error.name}, which is not installed here: run it on a machine that trains or "
            "serves",
            file=sys.stderr,
        )
        return 1
    except MergeError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{chosen.into}: {entry.name} with the adapter's weights, in bfloat16")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
