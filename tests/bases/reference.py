"""What transformers and PEFT compute in fp32, one example at a time, for small bases and their adapters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import peft
import torch
from transformers import AutoModelForCausalLM


def logprobs(
    base: Path, adapters: Sequence[Path], prompts: Sequence[Sequence[int]]
) -> list[list[list[float]]]:
    """Return the log-probabilities of each prompt's tokens but the first, by the base and by each adapter."""
    load: Any = cast(Any, AutoModelForCausalLM).from_pretrained
    found: list[list[list[float]]] = []
    for adapter in (None, *adapters):
        model = load(base, dtype=torch.float32, attn_implementation="eager", local_files_only=True)
        if adapter is not None:
            model = cast(Any, peft.PeftModel).from_pretrained(model, adapter)
        found.append([_logprobs(model.eval(), prompt) for prompt in prompts])
    return found


@torch.no_grad()
def _logprobs(model: Any, prompt: Sequence[int]) -> list[float]:
    ids = torch.tensor([list(prompt)])
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].tolist()
