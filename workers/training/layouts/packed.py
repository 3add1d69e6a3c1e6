"""The packed layout: all sequences of a micro-batch in one row without padding.

Tokens that all its sequences begin with (usually the system prompt), or that a sequence has in common with
the one before it (two answers to one prompt), are in the row once: causal attention gives them the same
hidden states in every sequence, so computing them once is exact, and their gradients add up by themselves.
`app.models.token_mixing` says for which bases this is right.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name
from transformers import AttentionInterface

from app.fine_tuning.packing import PackedRow, Sequences
from workers.training.layouts.batch import Batch

ATTENTION = "packed"
"""The name under which transformers knows `packed_attention`."""

WRITTEN_OUT = 128 * 128
"""Up to this many attention scores, three plain products are faster than torch's CPU kernel, which is made
for long rows (four times as fast at 48 x 65), and keeping the scores for the backward pass costs little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch(Batch):
    """Sequences in one row: first the tokens that they all share, then each one's own (`PackedRow`).

    There are N tokens in the row, B sequences, P shared tokens, and L further tokens in the longest sequence.
    """

    position_ids: Tensor
    """[1, N]: each token's position in its own sequence."""
    shared: int
    """P"""
    query_rows: Tensor
    """[B, L]: places in the row of each sequence's further tokens; past its end, of any token."""
    key_rows: Tensor
    """[B, P + L]: places of the shared tokens, then those of `query_rows`."""
    own_places: Tensor
    """[N - P]: the index in the flattened `query_rows` of each of the row's further tokens."""

    def model_inputs(self, dtype: torch.dtype) -> dict[str, Any]:
        """The row, the positions in it, and what `packed_attention` needs to know of it."""
        places = self.key_rows.shape[1]
        # [places, places], the same for all sequences: 0 where a token attends, minus infinity elsewhere.
        causal = torch.full((places, places), -torch.inf, dtype=dtype, device=self.input_ids.device).triu(1)
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": causal[None, None],
            "packed": self,
        }


def pack(examples: Iterable[Sequences]) -> PackedBatch:
    """Turn the row of the examples' sequences into tensors."""
    layout = PackedRow.of(examples)
    shared, width = layout.shared, layout.width
    row = layout.inputs[0][:shared]
    positions = list(range(shared))
    predicting: list[int] = []
    targets: list[int] = []
    sequence: list[int] = []
    query_rows: list[list[int]] = []
    own_places: list[int] = []
    places = list(range(shared))
    laid_out = zip(layout.sequences, layout.inputs, layout.starts, strict=True)
    for number, (part, tokens, start) in enumerate(laid_out):
        places = [*places[:start], *range(len(row), len(row) + len(tokens) - start)]
        for place in range(1, len(tokens) + 1):
            if part.target_mask[place]:
                predicting.append(places[place - 1])
                targets.append(part.input_ids[place])
                sequence.append(number)
        query_rows.append([*places[shared:], *[places[-1]] * (width + shared - len(tokens))])
        own_places.extend(number * width + place - shared for place in range(start, len(tokens)))
        row.extend(tokens[start:])
        positions.extend(range(start, len(tokens)))

    queries = torch.tensor(query_rows)
    return PackedBatch(
        input_ids=torch.tensor([row]),
        position_ids=torch.tensor([positions]),
        predicting=torch.tensor(predicting),
        targets=torch.tensor(targets),
        sequence=torch.tensor(sequence),
        sequences=len(layout.inputs),
        shared=shared,
        query_rows=queries,
        key_rows=torch.cat([torch.arange(shared).expand(len(query_rows), shared), queries], dim=1),
        own_places=torch.tensor(own_places),
    )


def packed_attention(
    module: nn.Module,  # noqa: ARG001 - part of the interface, as are the defaults
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    packed: PackedBatch,
    scaling: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001 - the base is frozen: nothing to regularize
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention inside each sequence of a packed row, for transformers' attention layers.

    Args:
        module: the attention layer.
        query: [1, heads, N, width]
        key: [1, key heads, N, width]
        value: [1, key heads, N, width of the values]
        attention_mask: [1, 1, P + L, P + L], causal.
        packed: the row's layout.
        scaling: the factor of the scores.
        dropout: not applied.
        kwargs: arguments that the base's architecture adds.

    Returns:
        [1, N, heads, width of the values]

    Raises:
        NotImplementedError: the base's attention is not plain causal attention.
    """
    _check_plain(longest=packed.key_rows.shape[1], **kwargs)
    heads = query.shape[1]
    shared = packed.shared
    mask = attention_mask[0, 0]
    scale = query.shape[3] ** -0.5 if scaling is None else scaling

    own = attend(
        _rows(query, packed.query_rows),
        _rows(key, packed.key_rows),
        _rows(value, packed.key_rows),
        mask[shared:],
        scale,
    )
    out = own.transpose(1, 2).reshape(-1, heads, value.shape[3]).index_select(0, packed.own_places)
    if shared:
        first = (..., slice(None, shared), slice(None))
        begin = attend(query[first], key[first], value[first], mask[:shared, :shared], scale)
        out = torch.cat([begin.transpose(1, 2)[0], out])
    return out.unsqueeze(0), None


def _check_plain(
    *,
    longest: int,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> None:
    """Refuse what the base's architecture adds to attention, by transformers' names for it."""
    if softcap or s_aux is not None or (sliding_window and sliding_window < longest):
        raise NotImplementedError(
            "the base model's attention (soft cap, sinks or a short window) is not supported"
        )


def _rows(states: Tensor, places: Tensor) -> Tensor:
    """[1, heads, N, width] -> [B, heads, L or P + L, width], padded."""
    chosen = states.transpose(1, 2)[0].index_select(0, places.flatten())
    return chosen.view(*places.shape, *chosen.shape[1:]).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Compute attention with grouped heads, [B, heads, L, width of the values].

    The last query attends to every key of `mask` [L, keys].
    """
    batch, heads, length, width = query.shape
    groups, keys = key.shape[1], key.shape[2]
    if query.device.type != "cpu" or length * keys > WRITTEN_OUT:
        causal = length == keys
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            None if causal else mask,
            is_causal=causal,
            scale=scale,
            enable_gqa=heads != groups,
        )
    # A group's heads share its keys, so they are rows of the same product.
    q = query.reshape(batch * groups, heads // groups * length, width)
    k, v = key.reshape(batch * groups, keys, width), value.reshape(batch * groups, keys, -1)
    scores = torch.baddbmm(mask.repeat(heads // groups, 1), q, k.transpose(1, 2), alpha=scale)
    return torch.bmm(scores.softmax(dim=-1), v).view(batch, heads, length, -1)


cast(Any, AttentionInterface).register(ATTENTION, packed_attention)
