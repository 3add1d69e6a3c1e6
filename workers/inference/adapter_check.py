"""What an adapter's folder must be before vLLM may have it.

vLLM refuses much by itself, but takes weights that are not numbers, or of another shape, and one such
adapter spoils every later answer of the process, the base model's too: its NaNs stay in the key/value cache.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any, cast

_PREFIX = "base_model.model."
_LARGEST_WEIGHT = 1e4
"""Trained weights are below 10; far above this, their products leave bfloat16's range."""

Shapes = dict[str, list[int]]


class AdapterError(ValueError):
    """The folder is no adapter that this base model can serve; the message says why."""


def module_shapes(base_model_dir: Path) -> Shapes:
    """The base model's linear modules with their weights' shapes, but for those of the vocabulary's size."""
    config = cast(dict[str, Any], json.loads((base_model_dir / "config.json").read_text("utf-8")))
    shapes: Shapes = {}
    for path in base_model_dir.glob("*.safetensors"):
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = cast(dict[str, dict[str, Any]], json.loads(file.read(size)))
        for name, tensor in header.items():
            shape = cast(list[int], tensor.get("shape", []))
            # Adapters of embeddings and of the output layer are not served: see `dense_lora`.
            if name.endswith(".weight") and len(shape) == 2 and shape[0] != config.get("vocab_size"):
                shapes[name.removesuffix(".weight")] = shape
    return shapes


def check_adapter(folder: Path, base: Shapes, max_rank: int) -> None:
    """Reads all of the adapter.

    Raises:
        AdapterError: it cannot be served.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise AdapterError(f"{name} is missing")
    try:
        config = cast(dict[str, Any], json.loads((folder / "adapter_config.json").read_text("utf-8")))
        rank, scale = _check_config(config, max_rank)
        _check_weights(folder / "adapter_model.safetensors", base, rank, scale)
    except AdapterError:
        raise
    except Exception as error:  # whatever a corrupt file makes its reader raise
        raise AdapterError(f"it cannot be read: {error}") from error


def _check_config(config: dict[str, Any], max_rank: int) -> tuple[int, float]:
    """Its rank and the factor that its weights are multiplied by."""
    for name, plain in (("peft_type", "LORA"), ("bias", "none")):
        if config.get(name) != plain:
            raise AdapterError(f"{name} is {config.get(name)!r}; only {plain!r} can be served")
    for name in ("modules_to_save", "use_dora", "rank_pattern", "alpha_pattern", "lora_bias"):
        if config.get(name):
            raise AdapterError(f"it uses {name}, which cannot be served")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not 1 <= rank <= max_rank:
        raise AdapterError(f"its rank is {rank}; this engine serves up to {max_rank}")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise AdapterError(f"its lora_alpha is {alpha}")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _check_weights(path: Path, base: Shapes, rank: int, scale: float) -> None:
    # Imported here: torch is loaded in vLLM's processes, but not in all that import this.
    import torch  # noqa: PLC0415
    from safetensors import safe_open  # noqa: PLC0415

    names: set[str] = set()
    with cast(Any, safe_open)(path, framework="pt") as file:
        for key in cast(list[str], file.keys()):
            module, _, half = key.removeprefix(_PREFIX).rpartition(".lora_")
            if not key.startswith(_PREFIX) or half not in ("A.weight", "B.weight") or module not in base:
                raise AdapterError(f"{key} fits no module of the base model")
            rows, columns = base[module]
            tensor = cast(torch.Tensor, file.get_tensor(key))
            shape = [rank, columns] if half == "A.weight" else [rows, rank]
            if list(tensor.shape) != shape:
                raise AdapterError(f"{key} has shape {list(tensor.shape)} instead of {shape}")
            low, high = torch.aminmax(tensor)  # NaN if any is
            if not max(-float(low), float(high)) * (1 if half == "A.weight" else scale) <= _LARGEST_WEIGHT:
                raise AdapterError(f"{key} has weights that are not numbers, or enormous")
            names.add(f"{module} {half[0]}")
    if not names:
        raise AdapterError("it has no weights")
    for name in names:
        if f"{name[:-1]}{'B' if name.endswith('A') else 'A'}" not in names:
            raise AdapterError(f"{name[:-2]} has only one half of its weights")
