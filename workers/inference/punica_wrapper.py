"""Several adapters, and none, in one batch on a CPU.

vLLM's own CPU kernels give rows without an adapter (index -1) the weights of the last slot, and gather a
copy of the weights for every row. Here a prompt's rows, which are neighbours, are multiplied by their own
adapter's weights; for rows that lie mixed (one from each answer under way) all slots in use are one matrix:
`x @ A.T` for all of them at once, a mask that zeroes in each row what is not its own adapter's, then `@ B`.
A row without an adapter gets exactly 0 added.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from workers.inference.lora_stack import LoraStack, Stretch
from workers.inference.spare_cores import SpareCores

_LONG_RUN = 32
"""So many neighbouring rows of one adapter are worth multiplications of their own."""
_CALLS_PER_REORDERING = 30
"""A batch calls once for each layer. All layers reordered in one would be a pause that users see."""


class DensePunicaWrapper(PunicaWrapperCPU):
    """What vLLM's LoRA layers call, for one model."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)  # pyright: ignore[reportUnknownMemberType]
        self._stacks: defaultdict[int, LoraStack] = defaultdict(LoraStack)
        """By the address of vLLM's first B."""
        self._owners: tuple[int | None, ...] = ()
        self._rows = 0
        self._stretches: list[Stretch] = []
        self._calls_since_reordering = 0
        self._spare_cores = SpareCores(most=torch.get_num_threads())

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], *arguments: Any, **options: Any
    ) -> None:
        """Before each batch unlike the last: which slot every row has, and which adapter every slot."""
        if (threads := self._spare_cores.count()) != torch.get_num_threads():
            torch.set_num_threads(threads)
        super().update_metadata(  # pyright: ignore[reportUnknownMemberType]
            mapping, lora_index_to_id, *arguments, **options
        )
        self._owners = tuple(lora_index_to_id)
        self._rows = len(self.token_lora_indices)
        self._stretches = list(_stretches(self.token_lora_indices, len(lora_index_to_id)))

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
        stack = self._stack(lora_a_stacked, lora_b_stacked)
        if stack.rank == 0:
            return
        # Rows past the indices are padding.
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        if x.size(0) < self._rows:
            raise ValueError(f"{x.size(0)} rows for {self._rows} slot indices")
        self._calls_since_reordering += 1
        if self._calls_since_reordering >= _CALLS_PER_REORDERING and stack.worth_reordering(self._stretches):
            stack.reorder()
            self._calls_since_reordering = 0
        for stretch in self._stretches:
            stack.add(y, x, stretch, scale)

    def add_lora_logits(
        self, y: Tensor, x: Tensor, lora_a_stacked: Tensor, lora_b_stacked: Tensor, scale: float, **_: Any
    ) -> None:
        """Does nothing: `app.models.adapters.validation` refuses adapters of the output layer.

        vLLM's own gathers rows x vocabulary x rank at every step, for base rows too, and fails on the
        rows that `prompt_logprobs` asks for.
        """
        del y, x, scale
        if self._stack((lora_a_stacked,), (lora_b_stacked,)).rank:
            raise NotImplementedError("an adapter of the output layer cannot be served on a CPU")

    def add_lora_embedding(self, y: Tensor, x: Tensor, lora_b_stacked: Tensor, *_: Any, **__: Any) -> None:
        """Nothing, as in `add_lora_logits`."""
        del y, x
        if self._stack((), (lora_b_stacked,)).rank:
            raise NotImplementedError("an adapter of the embeddings cannot be served on a CPU")

    def _stack(self, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> LoraStack:
        stack = self._stacks[b[0].data_ptr()]
        stack.follow(self._owners, a, b)
        return stack


def _stretches(slots: Tensor, all_slots: int) -> Iterator[Stretch]:
    """The batch's rows that have adapters; those without may lie among them, in a mixed stretch."""
    start = end = 0
    for slot, run in groupby(cast(list[int], slots.tolist())):  # pyright: ignore[reportUnknownMemberType]
        length = len(list(run))
        if length >= _LONG_RUN:
            yield from _mixed(slots, start, end, all_slots)
            if slot >= 0:
                yield Stretch(slice(end, end + length), slice(slot, slot + 1), None)
            start = end + length
        end += length
    yield from _mixed(slots, start, end, all_slots)


def _mixed(slots: Tensor, start: int, end: int, all_slots: int) -> Iterator[Stretch]:
    own = slots[start:end]
    used = own[own >= 0]
    if used.numel():
        first, last = int(used.min()), int(used.max())
        if (last - first + 1) * 2 > all_slots:
            first, last = 0, all_slots - 1  # all reordered take less time than half of them as they are
        foreign = own[:, None] != torch.arange(first, last + 1)
        yield Stretch(slice(start, end), slice(first, last + 1), foreign)
