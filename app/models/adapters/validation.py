"""Validation of an adapter's folder, before it is published and before vLLM may load it.

vLLM refuses much by itself, but it accepts weights that are NaN or have the wrong shape. One such adapter
spoils every later answer of the process, the base model's too, because its NaNs stay in the key/value cache.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import Any

import msgspec

from app.models.adapters.target_modules import shorten
from app.models.adapters.weights import (
    FLOATS,
    DamagedWeightsError,
    Tensor,
    is_plausible,
    largest_number,
    read_tensors,
)
from app.models.serving_support import adapted
from app.models.token_mixing import read_config
from app.storage.manifest import MANIFEST, read_sums

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_LARGEST_WEIGHT = 1e4
"""Trained weights are below 10; far above this, their products leave bfloat16's range."""
_LARGEST_PRODUCT = 1e4
"""Of a number of the one half and one of the other, with its scale; trained ones are below 100. Far above
this, activations leave bfloat16's range within a few layers, and then a model answers nothing."""
_LARGEST_CONFIG = 2**20
_LARGEST_ALPHA = 1e9

_CHECKED = ("peft_type", "task_type", "bias", "r", "lora_alpha", "use_rslora", "init_lora_weights")
_IGNORED = (
    *("auto_mapping", "base_model_name_or_path", "revision", "peft_version", "inference_mode"),
    *("lora_dropout", "loftq_config", "eva_config", "lora_ga_config", "qalora_group_size", "megatron_core"),
    # The weights say which modules the adapter has.
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
)
"""PEFT's fields about how an adapter was trained; any other field that is set changes what it computes."""
_PLAIN_INITIALIZATIONS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Values of `init_lora_weights` that keep the base model as it is; PiSSA, OLoRA, CorDA and LoftQ do not."""

Shapes = dict[str, list[int]]
"""Modules and their weights' shapes."""


class AdapterError(ValueError):
    """The folder has no adapter that can be served; says which file is at fault, a code, and why."""

    def __init__(self, file: str, code: str, message: str) -> None:
        self.file = file
        self.code = code
        self.message = message[:600]
        super().__init__(self.message)


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """What is needed to serve an adapter, apart from its tensors."""

    rank: int
    alpha: float
    use_rslora: bool
    modules: list[str]
    """The modules' names, in the form that `target_modules` has."""

    @property
    def scale(self) -> float:
        """The factor that the product of the two halves is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def config(self, base_model: str) -> bytes:
        """Return PEFT's `adapter_config.json` with these values and no others."""
        fields = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "use_rslora": self.use_rslora,
            "target_modules": self.modules,
            "bias": "none",
        }
        return json.dumps(fields, indent=2).encode() + b"\n"


def module_shapes(base_model_dir: Path) -> Shapes:
    """Return the shapes of the base model's weights, by module, except vectors, embeddings and output layer.

    `app.models.serving_support.adapted` says which of them an adapter may have weights for.

    Raises:
        DamagedWeightsError: a file of weights is broken or incomplete.
        OSError: a file cannot be read.
    """
    files = [base_model_dir / "config.json", *sorted(base_model_dir.glob("*.safetensors"))]
    return dict(_read_shapes(base_model_dir, tuple((file, file.stat().st_mtime_ns) for file in files)))


@lru_cache(maxsize=16)
def _read_shapes(base_model_dir: Path, files: tuple[tuple[Path, int], ...]) -> Shapes:
    """Read the headers of the weights; files that have changed since are read again."""
    vocabulary = read_config(base_model_dir).get("vocab_size")
    shapes: Shapes = {}
    for path, _ in files[1:]:
        with path.open("rb") as file:
            tensors = read_tensors(file)
        for name, tensor in tensors.items():
            # Embeddings and the output layer get no adapter: see `workers.inference.punica_wrapper`.
            is_matrix = len(tensor.shape) >= 2 and tensor.shape[0] != vocabulary
            if name.endswith(".weight") and is_matrix:
                shapes[name.removesuffix(".weight")] = tensor.shape
    return shapes


def check_adapter(folder: Path, base: Shapes | None, max_rank: int | None) -> LoraWeights:
    """Read and check the whole adapter.

    Args:
        folder: with PEFT's two files.
        base: the base model's modules; None if they are not known here, so that an engine must compare them.
        max_rank: the largest rank that is served; None for any.

    Raises:
        AdapterError: it cannot be served, whoever tries and whenever.
        OSError: a file cannot be read now: it is not there, or the storage is not.
    """
    lora, tensors = _read(folder, base, max_rank)
    _check_sums(folder)
    with _opened(folder, WEIGHTS) as file:
        for name, tensor in tensors.items():
            largest = _LARGEST_WEIGHT / (1 if name.endswith("A.weight") else lora.scale)
            if not is_plausible(file, tensor, largest):
                problem = f"{_shown(name)} has weights that are not numbers, or enormous"
                raise AdapterError(WEIGHTS, "invalid_weights", problem)
        _check_products(file, tensors, lora.scale)
    return lora


def _check_products(file: BufferedReader, tensors: dict[str, Tensor], scale: float) -> None:
    for name, tensor in tensors.items():
        module, is_second, _ = name.rpartition(".lora_B.weight")
        if not is_second:
            continue
        first = largest_number(file, tensors[f"{module}.lora_A.weight"])
        if first * largest_number(file, tensor) * scale > _LARGEST_PRODUCT:
            problem = f"{_shown(name)} has weights that are enormous, together with those of its other half"
            raise AdapterError(WEIGHTS, "invalid_weights", problem)


def describe_adapter(folder: Path, base: Shapes | None) -> LoraWeights:
    """Describe a published adapter, without reading its weights.

    Raises:
        AdapterError, OSError: as `check_adapter`.
    """
    return _read(folder, base, None)[0]


def _read(folder: Path, base: Shapes | None, max_rank: int | None) -> tuple[LoraWeights, dict[str, Tensor]]:
    _check_names(folder)
    with _opened(folder, CONFIG) as file:
        config = _parse(file.read(_LARGEST_CONFIG + 1))
    rank, alpha = _check_config(config, max_rank)
    with _opened(folder, WEIGHTS) as file:
        tensors = read_tensors(file)
    modules = _check_tensors(tensors, base, rank)
    targets = sorted(modules) if base is None else shorten(modules, base)
    lora = LoraWeights(rank, alpha, bool(config.get("use_rslora")), targets)
    return lora, tensors


def _check_names(folder: Path) -> None:
    """Refuse links, and weights in formats that can run code, which vLLM loads if there are no others."""
    if folder.is_symlink():
        raise AdapterError(WEIGHTS, "unsafe_files", "its folder is a link")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                raise AdapterError(entry.name, "unsafe_files", f"{_shown(entry.name)} is a link")
            if entry.name.startswith("adapter_model.") and entry.name != WEIGHTS:
                problem = f"{_shown(entry.name)} may run code when it is loaded; only safetensors are"
                raise AdapterError(entry.name, "unsafe_files", problem)


@contextmanager
def _opened(folder: Path, name: str) -> Generator[BufferedReader]:
    """Open the file if it is a regular one; damage that its reader finds is an error of this file."""
    try:
        # Neither a link, nor a pipe that nobody writes to.
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise AdapterError(name, "unsafe_files", f"{name} is a link") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise AdapterError(name, "unsafe_files", f"{name} is not a file")
    try:
        with os.fdopen(descriptor, "rb") as file:
            yield file
    except DamagedWeightsError as error:
        raise AdapterError(name, "invalid_safetensors", f"{name} cannot be read: {error}") from error


def _check_sums(folder: Path) -> None:
    """Compare both files with the manifest's checksums, if there is one: a flipped bit is still a number."""
    try:
        sums = read_sums((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return
    except ValueError as error:
        raise AdapterError(MANIFEST, "checksum_mismatch", "its manifest cannot be read") from error
    for name in (CONFIG, WEIGHTS):
        with _opened(folder, name) as file:
            if sums.get(name) != hashlib.file_digest(file, "sha256").hexdigest():
                raise AdapterError(name, "checksum_mismatch", f"{name} is not as it was written")


def _parse(content: bytes) -> dict[str, Any]:
    problem = "larger than 1 MiB"
    if len(content) <= _LARGEST_CONFIG:
        try:
            return msgspec.json.decode(content, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            problem = str(error)
    raise AdapterError(CONFIG, "invalid_adapter_config", f"{CONFIG} cannot be read: {problem}")


def _check_config(config: dict[str, Any], max_rank: int | None) -> tuple[int, float]:
    """Return the adapter's rank and alpha, if its configuration can be served."""
    for name, plain in (("peft_type", ("LORA",)), ("bias", ("none",)), ("task_type", ("CAUSAL_LM", None))):
        if config.get(name) not in plain:
            problem = f"{name} is {_shown(config.get(name))}; only {plain[0]!r} can be served"
            raise AdapterError(CONFIG, "unsupported_adapter", problem)
    for name, value in config.items():
        if value and name not in (*_CHECKED, *_IGNORED):
            problem = f"it uses {_shown(name)}, which cannot be served"
            raise AdapterError(CONFIG, "unsupported_adapter", problem)
    initialization = config.get("init_lora_weights")
    if isinstance(initialization, str) and initialization.lower() not in _PLAIN_INITIALIZATIONS:
        problem = f"init_lora_weights is {_shown(initialization)}, which changes the base model as well; "
        problem += "convert it to plain LoRA first (PEFT's path_initial_model_for_weight_conversion)"
        raise AdapterError(CONFIG, "unsupported_adapter", problem)
    rank, alpha, rslora = config.get("r"), config.get("lora_alpha"), config.get("use_rslora")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise AdapterError(CONFIG, "invalid_adapter_config", f"its rank (r) is {_shown(rank)}")
    if max_rank is not None and rank > max_rank:
        problem = f"its rank is {rank}; up to {max_rank} can be served (max_rank in TOQUE_BASE_MODELS)"
        raise AdapterError(CONFIG, "rank_too_large", problem)
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha <= _LARGEST_ALPHA:
        raise AdapterError(CONFIG, "invalid_adapter_config", f"its lora_alpha is {_shown(alpha)}")
    if not config.get("target_modules"):
        raise AdapterError(CONFIG, "invalid_adapter_config", "it names no target_modules")
    if rslora not in (None, True, False):
        raise AdapterError(CONFIG, "invalid_adapter_config", f"its use_rslora is {_shown(rslora)}")
    return rank, alpha


def _check_tensors(tensors: dict[str, Tensor], base: Shapes | None, rank: int) -> set[str]:
    """Return the adapter's modules, each with both halves in the shapes that the base model needs."""
    halves: dict[str, set[str]] = {"A": set(), "B": set()}
    modules = None if base is None else adapted(base)
    for name, tensor in tensors.items():
        module, _, half = name.removeprefix(_PREFIX).rpartition(".lora_")
        is_lora = name.startswith(_PREFIX) and half in ("A.weight", "B.weight")
        is_matrix = len(tensor.shape) == 2 and all(tensor.shape)
        if not is_lora or not is_matrix or (modules is not None and module not in modules):
            problem = f"{_shown(name)} fits no module of the base model"
            if is_lora and is_matrix and base is not None and module in base:
                problem = f"{_shown(name)} is of a module that cannot be served with LoRA"
            raise AdapterError(WEIGHTS, "base_model_mismatch", problem)
        rows, columns = modules[module] if modules is not None else (tensor.shape[0], tensor.shape[1])
        shape = [rank, columns] if half == "A.weight" else [rows, rank]
        if tensor.shape != shape:
            problem = f"{_shown(name)} has shape {tensor.shape} instead of {shape}"
            raise AdapterError(WEIGHTS, "base_model_mismatch", problem)
        if tensor.dtype not in FLOATS:
            problem = f"{_shown(name)} has the type {_shown(tensor.dtype)}; these are served: "
            raise AdapterError(WEIGHTS, "unsupported_adapter", problem + ", ".join(FLOATS))
        halves[half[0]].add(module)
    if not tensors:
        raise AdapterError(WEIGHTS, "invalid_weights", "it has no weights")
    if lonely := halves["A"] ^ halves["B"]:
        problem = f"{_shown(min(lonely))} has only one half of its weights"
        raise AdapterError(WEIGHTS, "invalid_weights", problem)
    return halves["A"]


def _shown(value: object) -> str:
    """Return the value as ASCII, at most 200 characters long, so that it is safe to show in a message."""
    text = ascii(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
