"""A trainer on a machine with room for so many tokens at once."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workers.training import learning, trainer
from workers.training.layouts import target_logits
from workers.training.layouts.packed import PackedBatch


def starved_logits(room: int, model: Any, batch: PackedBatch, counter: Path | None = None) -> Tensor:
    """Fails in the middle of the forward pass where the examples, each as long as the longest, do not fit."""
    examples, longest = batch.key_rows.shape
    if examples * longest > room:
        if counter is None:
            torch.empty(1 << 60, dtype=torch.uint8)
        else:
            kills = int(counter.read_text().split()[1])
            counter.write_text(f"oom_kill {kills + 1}\n")
            os.kill(os.getpid(), signal.SIGKILL)
    return target_logits(model, batch)


def starve(room: int, counter: Path | None) -> None:
    """Give the trainer in this process room for so many tokens; if none, not even the base fits.

    For more than that it asks torch for memory that no machine has. With a counter, the kernel kills it
    instead, and counts that there.
    """
    learning.target_logits = lambda model, batch: starved_logits(room, model, batch, counter)
    if room == 0:
        trainer.load_warm_base = lambda *_: torch.empty(1 << 60, dtype=torch.uint8)
