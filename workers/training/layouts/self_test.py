"""Whether a base computes a batch as it computes each sequence alone, tried on its real weights."""

from __future__ import annotations

import hashlib
import random
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from app.datasets.chat_template import TokenizedExample
from app.models.token_mixing import Layout, token_mixing
from workers.training.decoder_layers import decoder_layers
from workers.training.layouts import Batch, collate, set_layout, target_logits

_LENGTHS = (24, 17, 29)
_COMMON = 9
"""All the rows begin with this many tokens in common."""
_LEAK = 0.05
"""Mean absolute difference in nats that other tokens around a sequence may make. The shapes stay the same,
and with them the rounding; only experts are given other numbers of tokens."""
_ROUNDING = {torch.float32: 0.01, torch.bfloat16: 0.5}
"""The same between a batch and its sequences alone, whose shapes differ. On the demo's base it is 0.00001 in
fp32 and up to 0.09 in bf16; where rows run into each other it is 3 and more."""


class SelfTest(msgspec.Struct, frozen=True, kw_only=True):
    """What the self-test found."""

    layout: Layout | None
    """The layout that the base can be trained in; None if it cannot be trained."""
    reason: str
    largest_difference: float
    """Between the log-probabilities of a batch in that layout and of its sequences alone, in nats."""


def subject(folder: Path, device: torch.device, quantization: str) -> str:
    """Return a digest of what decides the outcome: the base in the folder, how it is computed, and by what.

    Weights are told apart by the sizes of their files, as reading them would take longer than the test.
    """
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    files = sorted((path.name, path.stat().st_size) for path in folder.glob("*.safetensors"))
    versions = (torch.__version__, transformers.__version__)
    described = repr((files, device.type, gpu, quantization, versions)).encode()
    return hashlib.sha256((folder / "config.json").read_bytes() + described).hexdigest()


@torch.no_grad()
def self_test(base: PreTrainedModel) -> SelfTest:
    """Compute a few random rows alone, in padded batches and, if the base may be packed, in packed ones."""
    if next(decoder_layers(base), None) is None:
        return _refused("transformers does not mark its decoder layers, which training has to know", 0.0)
    config: dict[str, Any] = cast(Any, base.config).get_text_config().to_dict()
    mixing = token_mixing(config, max(_LENGTHS))
    rows, others = _random_rows(config["vocab_size"])

    set_layout(base, "padded")
    alone = torch.cat([_logprobs(base, collate("padded", [(row,)])) for row in rows])
    batch = collate("padded", [(row,) for row in rows])
    padded = _logprobs(base, batch)
    leak = _mean(_logprobs(base, _with_other_padding(batch, others)) - padded)
    if not leak <= _LEAK:
        return _refused(f"what follows a sequence changes its log-probabilities by {leak:.2g} nats", leak)
    differences = padded - alone
    if not _mean(differences) <= _ROUNDING[base.dtype]:
        found = f"in a batch, sequences differ from single ones by {_mean(differences):.2g} nats"
        return _refused(found, float(differences.abs().max()))

    if mixing.layout == "packed":
        set_layout(base, "packed")
        packed = _packed_logprobs(base, rows)
        last = len(rows[-1].input_ids) - 1
        leak = _mean((_packed_logprobs(base, [*others[:-1], rows[-1]]) - packed)[-last:])
        if leak <= _LEAK and _mean(packed - alone) <= _ROUNDING[base.dtype]:
            differences = packed - alone
        else:
            found = f"packed sequences differ from single ones by {_mean(packed - alone):.2g} nats"
            mixing = replace(mixing, layout="padded", reason=f"{found} in the self-test")
    largest = float(differences.abs().max())
    return SelfTest(layout=mixing.layout, reason=mixing.reason, largest_difference=largest)


def _refused(reason: str, difference: float) -> SelfTest:
    return SelfTest(layout=None, reason=reason, largest_difference=difference)


def _random_rows(vocabulary: int) -> tuple[list[TokenizedExample], list[TokenizedExample]]:
    """Draw rows, the same every time, and others of the same lengths with the same beginning."""
    rng = random.Random(0)  # noqa: S311 - nothing secret
    common = [rng.randrange(vocabulary) for _ in range(_COMMON)]

    def draw(length: int) -> TokenizedExample:
        row = common + [rng.randrange(vocabulary) for _ in range(length - _COMMON)]
        return TokenizedExample(row, [False, *[True] * (length - 1)])

    return [draw(length) for length in _LENGTHS], [draw(length) for length in _LENGTHS]


def _logprobs(base: PreTrainedModel, batch: Batch) -> Tensor:
    batch = batch.to(base.device)
    logprobs = target_logits(base, batch).log_softmax(-1)
    return logprobs.gather(1, batch.targets[:, None])[:, 0]


def _packed_logprobs(base: PreTrainedModel, rows: Sequence[TokenizedExample]) -> Tensor:
    batch = collate("packed", [(row,) for row in rows])
    try:
        return _logprobs(base, batch)
    except Exception:  # the architecture does not take what packed attention needs, or needs what it lacks
        traceback.print_exc()
        return torch.full_like(batch.targets, torch.nan, dtype=torch.float32, device=base.device)


def _with_other_padding(batch: Batch, others: Sequence[TokenizedExample]) -> Batch:
    """The padded batch with tokens of the other rows in place of all padding."""
    ids = batch.input_ids.clone()
    for number, other in enumerate(others):
        end = len(other.input_ids) - 1  # nothing is computed from the last target on
        ids[number, end:] = torch.tensor(others[-1].input_ids)[end : ids.shape[1]]
    return replace(batch, input_ids=ids)


def _mean(differences: Tensor) -> float:
    return float(differences.abs().mean())
