"""Log-probabilities by transformers and PEFT, by default in fp32: what the served ones are held against.

`python -m benchmarks.serving.reference`, in a child, so that its memory is nobody's: a `Question` on stdin,
the answers on stdout.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, cast

import msgspec


class Question(msgspec.Struct, frozen=True):
    """Texts as token ids, each for the base model (None) or for an adapter in a folder."""

    base_model_dir: str
    texts: list[tuple[str | None, list[int]]]
    next_tokens: bool = False
    """Whether to return the vocabulary's log-probabilities after the text, instead of its tokens'."""
    dtype: str = "float32"
    """What is computed in, by its name in torch."""


def reference_logprobs(question: Question) -> list[list[float]]:
    """Returns each text's log-probabilities: its tokens' from the second on, or the vocabulary's after it."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving.reference"],
        input=msgspec.json.encode(question),
        # Waiting threads sleep: spinning ones would slow down whatever else runs, and be slowed down by it.
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.PIPE,
        check=True,
    )
    return msgspec.msgpack.decode(done.stdout, type=list[list[float]])


def main() -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    dtype = getattr(torch, question.dtype)
    model = cast(Any, AutoModelForCausalLM.from_pretrained(question.base_model_dir, dtype=dtype)).eval()
    adapters = sorted({adapter for adapter, _ in question.texts if adapter})
    for adapter in adapters:
        if isinstance(model, PeftModel):
            model.load_adapter(adapter, _name(adapter))
        else:
            model = cast(Any, PeftModel.from_pretrained(model, adapter, _name(adapter)))
    answers: list[list[float]] = []
    for adapter, ids in question.texts:
        if adapter:
            model.set_adapter(_name(adapter))
        with torch.inference_mode():
            if adapter is None and adapters:
                with model.disable_adapter():
                    logits = model(torch.tensor([ids])).logits[0].float()
            else:
                logits = model(torch.tensor([ids])).logits[0].float()
        if question.next_tokens:
            answers.append(torch.log_softmax(logits[-1], -1).tolist())
        else:
            scores = torch.log_softmax(logits[:-1], -1)
            answers.append(scores[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].tolist())
    sys.stdout.buffer.write(msgspec.msgpack.encode(answers))


def _name(adapter: str) -> str:
    return "a" + adapter.rpartition("/")[2]  # of a module: no dots, not only digits


if __name__ == "__main__":
    main()
