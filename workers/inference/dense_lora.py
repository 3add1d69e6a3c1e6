"""Several adapters, and none, in one batch on a CPU.

vLLM's own CPU kernels give rows without an adapter (index -1) the weights of the last slot, and gather a
copy of the weights for every row. Here a prompt's rows, which are neighbours, are multiplied by their own
adapter's weights; for rows that lie mixed (one from each answer under way) all slots in use are one matrix:
`x @ A.T` for all of them at once, a mask that zeroes in each row what is not its own adapter's, then `@ B`.
A row without an adapter gets exactly 0 added.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from workers.inference.spare_cores import SpareCores

_RANK_STEP = 8
_LONG_RUN = 32
"""So many neighbouring rows of one adapter are worth multiplications of their own."""


class _Stretch(NamedTuple):
    """Neighbouring rows that are computed together."""

    rows: slice
    slots: slice
    """A range, so that the weights of the slots in use are a view."""
    foreign: Tensor | None
    """rows x slots: whether the slot is not the row's own. None if all rows have the one slot."""


class _Packed(NamedTuple):
    """One layer's slots, as the two multiplications want them."""

    versions: tuple[int, ...]
    """The weights' versions when they were packed: vLLM writes a slot in place."""
    owners: tuple[int | None, ...]
    """The adapter in each slot, by vLLM's id."""
    rank: int
    """The largest rank in any slot; 0 if no adapter changes this layer."""
    a: Tensor
    """slots x (slices * rank) x in"""
    b: Tensor
    """slots x (slices * rank) x (outs of all slices): each slice's weights on the diagonal, else zeros. One
    multiplication that computes some zeros costs less than one a slice: small ones are all overhead."""


class DenseLoraWrapper(PunicaWrapperCPU):
    """What vLLM's LoRA layers call, for one model."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)  # pyright: ignore[reportUnknownMemberType]
        self._packed: dict[int, _Packed] = {}
        self._owners: tuple[int | None, ...] = ()
        self._rows = 0
        self._stretches: list[_Stretch] = []
        self._spare_cores = SpareCores(most=torch.get_num_threads())

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], *arguments: Any, **options: Any
    ) -> None:
        """Before every batch: which slot each of its rows has, and which adapter each slot."""
        if (threads := self._spare_cores.count()) != torch.get_num_threads():
            torch.set_num_threads(threads)
        super().update_metadata(  # pyright: ignore[reportUnknownMemberType]
            mapping, lora_index_to_id, *arguments, **options
        )
        self._owners = tuple(lora_index_to_id)
        self._rows = len(self.token_lora_indices)
        self._stretches = list(_stretches(self.token_lora_indices))

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        *_: Any,
        **__: Any,
    ) -> None:
        """Adds to `y` what each row's own adapter makes of `x`."""
        if not self._stretches:
            return
        layer = self._pack(lora_a_stacked, lora_b_stacked)
        if layer.rank == 0:
            return
        # Rows past the indices are padding.
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        if x.size(0) < self._rows:
            raise ValueError(f"{x.size(0)} rows for {self._rows} slot indices")
        for stretch in self._stretches:
            _add(y[stretch.rows], x[stretch.rows], layer, stretch, scale)

    def add_lora_logits(
        self, y: Tensor, x: Tensor, lora_a_stacked: Tensor, lora_b_stacked: Tensor, scale: float, **_: Any
    ) -> None:
        """Nothing: no adapter has a part in the output layer (`app.adapters.validation` refuses those).

        vLLM's own gathers rows x vocabulary x rank at every step, for base rows too, and fails on the
        rows that `prompt_logprobs` asks for.
        """
        del y, x, scale
        if self._pack((lora_a_stacked,), (lora_b_stacked,)).rank:
            raise NotImplementedError("an adapter of the output layer cannot be served on a CPU")

    def add_lora_embedding(self, y: Tensor, x: Tensor, lora_b_stacked: Tensor, *_: Any, **__: Any) -> None:
        """Nothing, as in `add_lora_logits`."""
        del y, x
        if self._pack((), (lora_b_stacked,)).rank:
            raise NotImplementedError("an adapter of the embeddings cannot be served on a CPU")

    def _pack(self, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> _Packed:
        versions = tuple(tensor._version for tensor in (*a, *b))  # counts writes in place
        layer = self._packed.get(b[0].data_ptr())
        if layer is None or layer.versions != versions:
            layer = (layer and _repack(layer, versions, self._owners, a, b)) or _pack(
                versions, self._owners, a, b
            )
            self._packed[b[0].data_ptr()] = layer
        return layer


def _stretches(slots: Tensor) -> Iterator[_Stretch]:
    """The batch's rows that have adapters; those without may lie among them, in a mixed stretch."""
    start = end = 0
    for slot, run in groupby(cast(list[int], slots.tolist())):  # pyright: ignore[reportUnknownMemberType]
        length = len(list(run))
        if length >= _LONG_RUN:
            yield from _mixed(slots, start, end)
            if slot >= 0:
                yield _Stretch(slice(end, end + length), slice(slot, slot + 1), None)
            start = end + length
        end += length
    yield from _mixed(slots, start, end)


def _mixed(slots: Tensor, start: int, end: int) -> Iterator[_Stretch]:
    own = slots[start:end]
    used = own[own >= 0]
    if used.numel():
        first, last = int(used.min()), int(used.max())
        foreign = own[:, None] != torch.arange(first, last + 1)
        yield _Stretch(slice(start, end), slice(first, last + 1), foreign)


def _add(y: Tensor, x: Tensor, layer: _Packed, stretch: _Stretch, scale: float) -> None:
    hidden = torch.nn.functional.linear(x, layer.a[stretch.slots].flatten(0, 1))
    if stretch.foreign is not None:
        # Filled, not multiplied: another adapter's overflow must not reach this row.
        hidden.view(*stretch.foreign.shape, -1).masked_fill_(stretch.foreign[:, :, None], 0.0)
    y.addmm_(hidden, layer.b[stretch.slots].flatten(0, 1), alpha=scale)


def _pack(
    versions: tuple[int, ...],
    owners: tuple[int | None, ...],
    a: tuple[Tensor, ...],
    b: tuple[Tensor, ...],
) -> _Packed:
    """All slots."""
    rank = _largest_rank(b)
    if rank == 0 or not a:
        return _Packed(versions, owners, rank, torch.empty(0), torch.empty(0))
    stacked_a = torch.cat([tensor[:, 0, :rank] for tensor in a], dim=1)
    stacked_b = torch.zeros(b[0].size(0), len(b) * rank, sum(t.size(2) for t in b), dtype=b[0].dtype)
    for place, tensor in _diagonal(stacked_b, rank, b):
        place.copy_(tensor[:, 0, :, :rank].transpose(1, 2))
    return _Packed(versions, owners, rank, stacked_a, stacked_b)


def _diagonal(stacked: Tensor, rank: int, b: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each slice's block of the stacked weights, slots x rank x out, and the slice's own weights."""
    start = 0
    for index, tensor in enumerate(b):
        width = tensor.size(2)
        yield stacked[:, index * rank : (index + 1) * rank, start : start + width], tensor
        start += width


def _repack(
    layer: _Packed,
    versions: tuple[int, ...],
    owners: tuple[int | None, ...],
    a: tuple[Tensor, ...],
    b: tuple[Tensor, ...],
) -> _Packed | None:
    """The same with only the slots of new adapters written; None if that may not be all that has changed.

    vLLM gives a slot to an adapter by two writes to each tensor, zeros and then its weights. If every write
    is accounted for so, no other slot has changed.
    """
    new = [slot for slot, owner in enumerate(owners) if owner not in (None, layer.owners[slot])]
    if any(now - before != 2 * len(new) for now, before in zip(versions, layer.versions, strict=True)):
        return None
    if not layer.rank or any(_largest_rank(tuple(t[slot, None] for t in b)) > layer.rank for slot in new):
        return None
    for slot in new:
        for index, tensor in enumerate(a):
            layer.a[slot, index * layer.rank : (index + 1) * layer.rank] = tensor[slot, 0, : layer.rank]
        for place, tensor in _diagonal(layer.b, layer.rank, b):
            place[slot] = tensor[slot, 0, :, : layer.rank].T
    return layer._replace(versions=versions, owners=owners)


def _largest_rank(b: tuple[Tensor, ...]) -> int:
    """In any slot, rounded up. vLLM makes room for any that it may load; columns past those in use are 0."""
    used = torch.stack([(tensor != 0).flatten(0, -2).any(0) for tensor in b]).any(0).nonzero()
    rank = -(-(int(used.max()) + 1) // _RANK_STEP) * _RANK_STEP if used.numel() else 0
    return min(rank, b[0].shape[-1])
