"""Activation checkpointing: decoder layers keep their inputs alone, and compute the rest again going back."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from torch.utils import checkpoint
from transformers import PreTrainedModel

from workers.training.decoder_layers import decoder_layers


def checkpoint_activations(base: PreTrainedModel, *, on: bool) -> None:
    """Switch activation checkpointing on or off; gradients are the same with and without.

    transformers' own switch works in training mode only, in which some architectures apply dropout.
    """
    for layer in decoder_layers(base):
        vars(layer).pop("forward", None)
        if on:
            cast(Any, layer).forward = partial(
                cast(Any, checkpoint).checkpoint, layer.forward, use_reentrant=False
            )


def checkpoints_activations(base: PreTrainedModel) -> bool:
    """Whether activation checkpointing is on."""
    return any("forward" in vars(layer) for layer in decoder_layers(base))
