"""Base models whose checkpoints are quantized already, as `quantization_config` in their config.json says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

MXFP4 = "mxfp4"
"""Four bits a weight, and a power of two for every 32 of them
(https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf): the one format that
is trained on. Every one of its numbers is a number of bfloat16, too, so nothing is lost when a checkpoint is
unpacked to be trained, and engines serve the weights as they are stored."""


def checkpoint_quantization(folder: Path) -> str | None:
    """Return the method by which the weights in a base model's folder are quantized; None if they are not."""
    whole = cast(dict[str, Any], json.loads((folder / "config.json").read_text("utf-8")))
    for part in (whole, whole.get("text_config") or {}):
        if settings := part.get("quantization_config") or part.get("compression_config"):
            return str(settings.get("quant_method") or "an unknown method")
    return None


def quantization_refusal(folder: Path) -> str | None:
    """Return why the checkpoint in this folder cannot be trained on, and what to do; None if it can be."""
    method = checkpoint_quantization(folder)
    if method in (None, MXFP4):
        return None
    return (
        f"its weights are quantized already ({method[:200]}), and adapters are trained on weights in bf16. "
        "Choose the variant of the model that is not quantized; `quantization` stores it in four bits while "
        "it is trained"
    )


def unpacked_parameters(weight: str, stored: int) -> int:
    """Return how many parameters a weight of this name stands for, of which `stored` values are in its file.

    A checkpoint in MXFP4 has two parameters in each byte of its blocks. Its scales are none.
    """
    if weight.endswith("_blocks"):
        return 2 * stored
    return 0 if weight.endswith("_scales") else stored
