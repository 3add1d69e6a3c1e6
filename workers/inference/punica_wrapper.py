"""A punica wrapper for CPUs: batches that mix several adapters and the base model.

vLLM's own CPU kernels give rows without an adapter (index -1) the weights of the last slot, and gather a
copy of the weights for every row. Here the rows of a prompt, which are adjacent, are multiplied by their
adapter's weights. For mixed rows (one from each answer in progress) all slots in use form one matrix:
`x @ A.T` for all of them at once, a mask that zeroes the other adapters' results in each row, then `@ B`.
Rows without an adapter get exactly 0 added.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from workers.inference.lora_stack import LoraStack, RowSegment

_MIN_OWN_SEGMENT = 32
"""Adjacent rows of one adapter that are worth a multiplication of their own."""
_CALLS_PER_REORDERING = 30
"""Calls, one for each layer of a batch, between two reorderings; more often would cause pauses."""


class DensePunicaWrapper(PunicaWrapperCPU):
    """The punica wrapper of one model, which vLLM's LoRA layers call."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)  # pyright: ignore[reportUnknownMemberType]
        self._stacks: defaultdict[int, LoraStack] = defaultdict(LoraStack)
        """Stack of each layer, by the address of the layer's first B tensor."""
        self._slot_adapters: tuple[int | None, ...] = ()
        self._rows = 0
        self._segments: list[RowSegment] = []
        self._calls_since_reordering = 0

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], *arguments: Any, **options: Any
    ) -> None:
        """Records each row's slot and each slot's adapter, before a batch that differs from the last."""
        super().update_metadata(  # pyright: ignore[reportUnknownMemberType]
            mapping, lora_index_to_id, *arguments, **options
        )
        self._slot_adapters = tuple(lora_index_to_id)
        self._rows = len(self.token_lora_indices)
        self._segments = list(_split_rows(self.token_lora_indices, len(lora_index_to_id)))

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
        """Adds to `y` the output of each row's own adapter for `x`."""
        if not self._segments:
            return
        stack = self._stack(lora_a_stacked, lora_b_stacked)
        if stack.rank == 0:
            return
        # Rows beyond the slot indices are padding.
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        if x.size(0) < self._rows:
            raise ValueError(f"{x.size(0)} rows for {self._rows} slot indices")
        self._calls_since_reordering += 1
        if self._calls_since_reordering >= _CALLS_PER_REORDERING and stack.worth_reordering(self._segments):
            stack.reorder()
            self._calls_since_reordering = 0
        for segment in self._segments:
            stack.add(y, x, segment, scale)

    def add_lora_logits(
        self, y: Tensor, x: Tensor, lora_a_stacked: Tensor, lora_b_stacked: Tensor, scale: float, **_: Any
    ) -> None:
        """Does nothing: `app.models.adapters.validation` refuses adapters of the output layer.

        vLLM's own version gathers rows x vocabulary x rank at every step, for base rows too, and fails on the
        rows that `prompt_logprobs` needs.
        """
        del y, x, scale
        if self._stack((lora_a_stacked,), (lora_b_stacked,)).rank:
            raise NotImplementedError("an adapter of the output layer cannot be served on a CPU")

    def add_lora_embedding(self, y: Tensor, x: Tensor, lora_b_stacked: Tensor, *_: Any, **__: Any) -> None:
        """Does nothing, as in `add_lora_logits`."""
        del y, x
        if self._stack((), (lora_b_stacked,)).rank:
            raise NotImplementedError("an adapter of the embeddings cannot be served on a CPU")

    def _stack(self, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> LoraStack:
        stack = self._stacks[b[0].data_ptr()]
        stack.update(self._slot_adapters, a, b)
        return stack


def _split_rows(slots: Tensor, all_slots: int) -> Iterator[RowSegment]:
    """Yields segments that cover all rows with an adapter; a mixed segment may contain rows without one."""
    start = end = 0
    for slot, run in groupby(cast(list[int], slots.tolist())):  # pyright: ignore[reportUnknownMemberType]
        length = len(list(run))
        if length >= _MIN_OWN_SEGMENT:
            yield from _mixed_segment(slots, start, end, all_slots)
            if slot >= 0:
                yield RowSegment(slice(end, end + length), slice(slot, slot + 1), None)
            start = end + length
        end += length
    yield from _mixed_segment(slots, start, end, all_slots)


def _mixed_segment(slots: Tensor, start: int, end: int, all_slots: int) -> Iterator[RowSegment]:
    own = slots[start:end]
    used = own[own >= 0]
    if used.numel():
        first, last = int(used.min()), int(used.max())
        if (last - first + 1) * 2 > all_slots:
            first, last = 0, all_slots - 1  # all slots reordered are faster than half of them unordered
        foreign = own[:, None] != torch.arange(first, last + 1)
        yield RowSegment(slice(start, end), slice(first, last + 1), foreign)
