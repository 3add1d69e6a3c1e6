"""Several adapters, and none, in one batch on a CPU.

vLLM's own CPU kernels give rows without an adapter (index -1) the weights of the last slot, and gather a
copy of the weights for every row. Here all slots in use are one matrix: `x @ A.T` for all of them at once,
a mask that zeroes in each row what is not its own adapter's, then `@ B`. A row without an adapter gets
exactly 0 added.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

_RANK_STEP = 8


class _Packed(NamedTuple):
    """One layer's slots, as the two multiplications want them."""

    versions: tuple[int, ...]
    """The weights' versions when they were packed: vLLM writes a slot in place."""
    rank: int
    """The largest rank in any slot; 0 if no adapter changes this layer."""
    a: Tensor
    """slots x (slices * rank) x in"""
    b: tuple[Tensor, ...]
    """For each slice: slots x rank x out"""


class DenseLoraWrapper(PunicaWrapperCPU):
    """What vLLM's LoRA layers call, for one model."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)  # pyright: ignore[reportUnknownMemberType]
        self._packed: dict[int, _Packed] = {}
        self._first_slot = 0
        self._foreign: Tensor | None = None
        """rows x slots in use: whether the slot is not the row's own. None if no row has an adapter."""

    def update_metadata(self, *arguments: Any, **options: Any) -> None:
        """Which slot each row of the next batch has."""
        super().update_metadata(*arguments, **options)  # pyright: ignore[reportUnknownMemberType]
        slots = self.token_lora_indices
        used = slots[slots >= 0]
        self._foreign = None
        if used.numel():
            # A range, so that the weights of the slots in use are a view.
            first, last = int(used.min()), int(used.max())
            self._first_slot = first
            self._foreign = slots[:, None] != torch.arange(first, last + 1)

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_: Any,
    ) -> None:
        """Adds to `y` what each row's own adapter makes of `x`."""
        if self._foreign is None:
            return
        layer = self._pack(lora_a_stacked, lora_b_stacked)
        if layer.rank == 0:
            return
        rows, slots = self._foreign.shape
        if x.size(0) < rows:
            raise ValueError(f"{x.size(0)} rows for {rows} slot indices")
        in_use = slice(self._first_slot, self._first_slot + slots)
        # Rows past the indices are padding.
        y, x = y.view(-1, y.shape[-1])[:rows], x.view(-1, x.shape[-1])[:rows]
        hidden = torch.nn.functional.linear(x, layer.a[in_use].flatten(0, 1))
        hidden = hidden.view(rows, slots, len(layer.b), layer.rank)
        # Filled, not multiplied: another adapter's overflow must not reach this row.
        hidden.masked_fill_(self._foreign[:, :, None, None], 0.0)
        start = 0
        for index, (width, b) in enumerate(zip(output_slices, layer.b, strict=True)):
            own = hidden[:, :, index].reshape(rows, slots * layer.rank)
            y[:, start : start + width].addmm_(own, b[in_use].flatten(0, 1), alpha=scale)
            start += width

    def add_lora_logits(
        self, y: Tensor, x: Tensor, lora_a_stacked: Tensor, lora_b_stacked: Tensor, scale: float, **_: Any
    ) -> None:
        """Nothing: no adapter has a part in the output layer (`adapter_check` refuses those that would).

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
            layer = _pack(versions, a, b)
            self._packed[b[0].data_ptr()] = layer
        return layer


def _pack(versions: tuple[int, ...], a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> _Packed:
    # vLLM makes room for the largest rank it may load; the columns past those in use are zeros.
    used = torch.stack([(tensor != 0).flatten(0, -2).any(0) for tensor in b]).any(0).nonzero()
    rank = -(-(int(used.max()) + 1) // _RANK_STEP) * _RANK_STEP if used.numel() else 0
    rank = min(rank, b[0].shape[-1])
    if rank == 0:
        return _Packed(versions, 0, torch.empty(0), ())
    if not a:
        return _Packed(versions, rank, torch.empty(0), ())
    stacked_a = torch.cat([tensor[:, 0, :rank] for tensor in a], dim=1)
    stacked_b = tuple(tensor[:, 0, :, :rank].transpose(1, 2).contiguous() for tensor in b)
    return _Packed(versions, rank, stacked_a, stacked_b)
