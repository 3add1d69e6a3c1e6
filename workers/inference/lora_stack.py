"""The adapters of one layer, stacked: two multiplications serve all that are in the engine's slots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from vllm import _custom_ops as vllm_ops

_RANK_STEP = 8
_SETTLED_BATCHES = 16
"""A stack that has not changed for so long is worth the time to reorder it."""
_KEPT_PRIMITIVES = 32
"""Of oneDNN's, one for each number of rows; as many as vLLM keeps for a layer."""


class Stretch(NamedTuple):
    """Neighbouring rows of a batch that are computed together."""

    rows: slice
    slots: slice
    """A range, so that the weights of the slots in use are a view."""
    foreign: Tensor | None
    """rows x slots: whether the slot is not the row's own. None if all rows have the one slot."""


class LoraStack:
    """Follows the weights that vLLM keeps for one layer, slot by slot and slice by slice.

    A slice is one of the projections that vLLM has merged into the layer, such as q, k and v.
    """

    def __init__(self) -> None:
        self.rank = 0
        """The largest rank in any slot; 0 if no adapter changes this layer."""
        self._a = torch.empty(0)
        """slots x (slices * rank) x in"""
        self._b = torch.empty(0)
        """slots x (slices * rank) x (outs of all slices): each slice's weights on the diagonal, else zeros.
        One multiplication that computes some zeros takes less time than one a slice."""
        self._versions: tuple[int, ...] = ()
        """The weights' versions when they were stacked: vLLM writes a slot in place."""
        self._owners: tuple[int | None, ...] = ()
        """The adapter in each slot, by vLLM's id."""
        self._unchanged_batches = 0
        self._reordered: tuple[vllm_ops.CPUDNNLGEMMHandler, vllm_ops.CPUDNNLGEMMHandler] | None = None
        """A and B of all slots in the order in which oneDNN reads them, as vLLM keeps the layers' own.
        Left as they are, they would be reordered at each multiplication, which takes as long again."""
        self._can_reorder = hasattr(torch.ops._C, "create_onednn_mm_handler")

    def follow(self, owners: tuple[int | None, ...], a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> None:
        """Before a batch: takes over what vLLM has written since the last one.

        Args:
            owners: The adapter in each slot.
            a: For each slice, slots x 1 x rank x in.
            b: For each slice, slots x 1 x out x rank.
        """
        versions = tuple(tensor._version for tensor in (*a, *b))  # counts writes in place
        if versions == self._versions:
            self._unchanged_batches += 1
            return
        self._unchanged_batches, self._reordered = 0, None
        if not self._write_new(versions, owners, a, b):
            self._write_all(a, b)
        self._versions, self._owners = versions, owners

    def worth_reordering(self, stretches: list[Stretch]) -> bool:
        """Whether `reorder` pays: these stretches would use it, and it will not be in vain."""
        return (
            self._can_reorder
            and self._reordered is None
            and self._unchanged_batches >= _SETTLED_BATCHES
            and any(self._has_all_slots(stretch) for stretch in stretches)
        )

    def reorder(self) -> None:
        """Makes batches with all slots faster, until an adapter comes or goes."""
        try:
            self._reordered = (
                vllm_ops.create_onednn_mm(self._a.flatten(0, 1).t(), _KEPT_PRIMITIVES),
                vllm_ops.create_onednn_mm(self._b.flatten(0, 1), _KEPT_PRIMITIVES),
            )
        except RuntimeError:  # oneDNN has nothing for this processor; vLLM does without as well
            self._can_reorder = False

    def add(self, y: Tensor, x: Tensor, stretch: Stretch, scale: float) -> None:
        """Adds to the stretch's rows of `y` what each row's own adapter makes of `x`."""
        y, x = y[stretch.rows], x[stretch.rows]
        if self._reordered and self._has_all_slots(stretch):
            a, b = self._reordered
            hidden = _own(vllm_ops.onednn_mm(a, x, None), stretch.foreign)
            y.add_(vllm_ops.onednn_mm(b, hidden, None), alpha=scale)
        else:
            hidden = torch.nn.functional.linear(x, self._a[stretch.slots].flatten(0, 1))
            hidden = _own(hidden, stretch.foreign)
            y.addmm_(hidden, self._b[stretch.slots].flatten(0, 1), alpha=scale)

    def _has_all_slots(self, stretch: Stretch) -> bool:
        return stretch.slots.stop - stretch.slots.start == self._a.size(0)

    def _write_all(self, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> None:
        self.rank = _largest_rank(b)
        if self.rank == 0 or not a:
            return
        self._a = torch.cat([tensor[:, 0, : self.rank] for tensor in a], dim=1)
        self._b = torch.zeros(
            b[0].size(0), len(b) * self.rank, sum(tensor.size(2) for tensor in b), dtype=b[0].dtype
        )
        for place, tensor in self._diagonal(b):
            place.copy_(tensor[:, 0, :, : self.rank].transpose(1, 2))

    def _write_new(
        self,
        versions: tuple[int, ...],
        owners: tuple[int | None, ...],
        a: tuple[Tensor, ...],
        b: tuple[Tensor, ...],
    ) -> bool:
        """Only the slots of new adapters; False, and nothing written, if those may not be all that changed.

        vLLM gives a slot to an adapter by two writes to each tensor, zeros and then its weights. If every
        write is accounted for so, no other slot has changed.
        """
        if not self.rank:
            return False
        new = [slot for slot, owner in enumerate(owners) if owner not in (None, self._owners[slot])]
        if any(now - before != 2 * len(new) for now, before in zip(versions, self._versions, strict=True)):
            return False
        if any(_largest_rank(tuple(tensor[slot, None] for tensor in b)) > self.rank for slot in new):
            return False
        for slot in new:
            for index, tensor in enumerate(a):
                self._a[slot, index * self.rank : (index + 1) * self.rank] = tensor[slot, 0, : self.rank]
            for place, tensor in self._diagonal(b):
                place[slot] = tensor[slot, 0, :, : self.rank].T
        return True

    def _diagonal(self, b: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor]]:
        """Each slice's block of the stacked weights, slots x rank x out, and the slice's own weights."""
        start = 0
        for index, tensor in enumerate(b):
            width = tensor.size(2)
            yield self._b[:, index * self.rank : (index + 1) * self.rank, start : start + width], tensor
            start += width


def _own(hidden: Tensor, foreign: Tensor | None) -> Tensor:
    """`hidden`, rows x (slots * ranks), with zeros for the slots that are not the row's own."""
    if foreign is not None:
        # Filled, not multiplied: another adapter's overflow must not reach this row.
        hidden.view(*foreign.shape, -1).masked_fill_(foreign[:, :, None], 0.0)
    return hidden


def _largest_rank(b: tuple[Tensor, ...]) -> int:
    """In any slot, rounded up. vLLM makes room for any that it may load; columns past those in use are 0."""
    used = torch.stack([(tensor != 0).flatten(0, -2).any(0) for tensor in b]).any(0).nonzero()
    rank = -(-(int(used.max()) + 1) // _RANK_STEP) * _RANK_STEP if used.numel() else 0
    return min(rank, b[0].shape[-1])
