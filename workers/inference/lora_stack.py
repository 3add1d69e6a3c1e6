"""The stacked LoRA weights of one layer: two multiplications serve the adapters in all slots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from vllm import _custom_ops as vllm_ops

_RANK_STEP = 8
_SETTLED_BATCHES = 16
"""Batches after which a stack that has not changed is worth reordering."""
_KEPT_PRIMITIVES = 32
"""oneDNN primitives to cache, one for each number of rows; vLLM keeps as many for a layer."""


class RowSegment(NamedTuple):
    """Adjacent rows of a batch that are computed together."""

    rows: slice
    """Range of the batch's rows."""
    slots: slice
    """Range of LoRA slots; a range, so that their weights are a view."""
    foreign: Tensor | None
    """Mask, rows x slots, of the slots that are not the row's own; None if all rows use one slot."""


class LoraStack:
    """Mirrors the LoRA weights that vLLM keeps for one layer, slot by slot and slice by slice.

    A slice is one of the projections that vLLM has fused into the layer, such as q, k and v.
    """

    def __init__(self) -> None:
        self.rank = 0
        """Largest rank in any slot; 0 if no adapter changes this layer."""
        self._a = torch.empty(0)
        """Stacked A weights, slots x (slices * rank) x in."""
        self._b = torch.empty(0)
        """Stacked B weights, slots x (slices * rank) x (outs of all slices), block-diagonal by slice.
        One multiplication with some zeros takes less time than one for each slice."""
        self._versions: tuple[int, ...] = ()
        """Versions of vLLM's tensors when they were stacked; writing a slot in place increments them."""
        self._slot_adapters: tuple[int | None, ...] = ()
        """Id of the adapter in each slot (vLLM's `lora_index_to_id`)."""
        self._unchanged_batches = 0
        self._reordered: tuple[vllm_ops.CPUDNNLGEMMHandler, vllm_ops.CPUDNNLGEMMHandler] | None = None
        """A and B of all slots in oneDNN's memory format, as vLLM keeps the layers' own weights. Otherwise
        oneDNN reorders them at each multiplication, which takes as long again."""
        self._can_reorder = hasattr(torch.ops._C, "create_onednn_mm_handler")

    def update(
        self, slot_adapters: tuple[int | None, ...], a: tuple[Tensor, ...], b: tuple[Tensor, ...]
    ) -> None:
        """Copies what vLLM has written since the last batch; must be called before each batch.

        Args:
            slot_adapters: The id of the adapter in each slot.
            a: For each slice, slots x 1 x rank x in.
            b: For each slice, slots x 1 x out x rank.
        """
        versions = tuple(tensor._version for tensor in (*a, *b))  # incremented by writes in place
        if versions == self._versions:
            self._unchanged_batches += 1
            return
        self._unchanged_batches, self._reordered = 0, None
        if not self._write_new(versions, slot_adapters, a, b):
            self._write_all(a, b)
        self._versions, self._slot_adapters = versions, slot_adapters

    def worth_reordering(self, segments: list[RowSegment]) -> bool:
        """Returns whether `reorder` pays: the stack is settled, and these segments would use it."""
        return (
            self._can_reorder
            and self._reordered is None
            and self._unchanged_batches >= _SETTLED_BATCHES
            and any(self._has_all_slots(segment) for segment in segments)
        )

    def reorder(self) -> None:
        """Makes batches with all slots faster, until an adapter is loaded or evicted."""
        try:
            self._reordered = (
                vllm_ops.create_onednn_mm(self._a.flatten(0, 1).t(), _KEPT_PRIMITIVES),
                vllm_ops.create_onednn_mm(self._b.flatten(0, 1), _KEPT_PRIMITIVES),
            )
        except RuntimeError:  # oneDNN does not support this processor; vLLM goes without it too
            self._can_reorder = False

    def add(self, y: Tensor, x: Tensor, segment: RowSegment, scale: float) -> None:
        """Adds to the segment's rows of `y` the output of each row's own adapter for `x`."""
        y, x = y[segment.rows], x[segment.rows]
        if self._reordered and self._has_all_slots(segment):
            a, b = self._reordered
            hidden = _mask_foreign(vllm_ops.onednn_mm(a, x, None), segment.foreign)
            y.add_(vllm_ops.onednn_mm(b, hidden, None), alpha=scale)
        else:
            hidden = torch.nn.functional.linear(x, self._a[segment.slots].flatten(0, 1))
            hidden = _mask_foreign(hidden, segment.foreign)
            y.addmm_(hidden, self._b[segment.slots].flatten(0, 1), alpha=scale)

    def _has_all_slots(self, segment: RowSegment) -> bool:
        return segment.slots.stop - segment.slots.start == self._a.size(0)

    def _write_all(self, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> None:
        self.rank = _largest_rank(b)
        if self.rank == 0 or not a:
            return
        self._a = torch.cat([tensor[:, 0, : self.rank] for tensor in a], dim=1)
        self._b = torch.zeros(
            b[0].size(0), len(b) * self.rank, sum(tensor.size(2) for tensor in b), dtype=b[0].dtype
        )
        for block, tensor in self._diagonal(b):
            block.copy_(tensor[:, 0, :, : self.rank].transpose(1, 2))

    def _write_new(
        self,
        versions: tuple[int, ...],
        slot_adapters: tuple[int | None, ...],
        a: tuple[Tensor, ...],
        b: tuple[Tensor, ...],
    ) -> bool:
        """Copies the slots of new adapters; returns False, and copies nothing, if others may have changed.

        vLLM loads an adapter into a slot with two writes to each tensor: zeros, then the weights. If that
        explains every write, no other slot has changed.
        """
        if not self.rank:
            return False
        new = [
            slot
            for slot, adapter in enumerate(slot_adapters)
            if adapter not in (None, self._slot_adapters[slot])
        ]
        if any(now - before != 2 * len(new) for now, before in zip(versions, self._versions, strict=True)):
            return False
        if any(_largest_rank(tuple(tensor[slot, None] for tensor in b)) > self.rank for slot in new):
            return False
        for slot in new:
            for index, tensor in enumerate(a):
                self._a[slot, index * self.rank : (index + 1) * self.rank] = tensor[slot, 0, : self.rank]
            for block, tensor in self._diagonal(b):
                block[slot] = tensor[slot, 0, :, : self.rank].T
        return True

    def _diagonal(self, b: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields each slice's block of the stacked B, slots x rank x out, and vLLM's tensor for it."""
        start = 0
        for index, tensor in enumerate(b):
            width = tensor.size(2)
            yield self._b[:, index * self.rank : (index + 1) * self.rank, start : start + width], tensor
            start += width


def _mask_foreign(hidden: Tensor, foreign: Tensor | None) -> Tensor:
    """Zeroes `hidden`, rows x (slots * ranks), where the slot is not the row's own; works in place."""
    if foreign is not None:
        # Filled rather than multiplied, so that infinity or NaN of another adapter does not reach this row.
        hidden.view(*foreign.shape, -1).masked_fill_(foreign[:, :, None], 0.0)
    return hidden


def _largest_rank(b: tuple[Tensor, ...]) -> int:
    """Returns the largest rank in any slot, rounded up. vLLM pads with zeros up to --max-lora-rank."""
    used = torch.stack([(tensor != 0).flatten(0, -2).any(0) for tensor in b]).any(0).nonzero()
    rank = -(-(int(used.max()) + 1) // _RANK_STEP) * _RANK_STEP if used.numel() else 0
    return min(rank, b[0].shape[-1])
