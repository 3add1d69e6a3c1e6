"""Served log-probabilities of small bases: a process that imports vLLM once and forks for each base.

`python -m tests.bases.engine` reads a `Question` a line and answers each with an `Answer` on a line. The LoRA
kernels are the engine's (`workers.inference.lora_kernels`); a batch mixes the base and all adapters.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec


class Question(msgspec.Struct):
    """Log-probabilities that are asked for."""

    folder: str
    """The base model's."""
    adapters: list[str]
    """The folders of adapters."""
    prompts: list[list[int]]
    dtype: str
    """`float32`, so that wrong answers cannot hide behind rounding, where vLLM computes the base in it."""


class Answer(msgspec.Struct):
    """What vLLM said."""

    logprobs: list[list[list[float]]] = []
    """Of each prompt's tokens but the first, by the base and then by each adapter."""
    failure: str = ""
    """Why vLLM does not serve the base."""


class ForkingEngine:
    """The process, as a context manager."""

    def __enter__(self) -> ForkingEngine:
        environment = os.environ | {
            "TOQUE_ENGINE": "bases",
            "VLLM_PLUGINS": "toque_lora_kernels",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_LOGGING_LEVEL": "CRITICAL",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",  # a process that has run OpenMP's threads cannot be forked
            "PYTHONWARNINGS": "ignore",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bases.engine"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        return self

    def ask(self, question: Question) -> Answer:
        """Load the base and the adapters, and return their log-probabilities of the prompts' tokens."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(question) + b"\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._process.stdout.readline(), type=Answer)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=60)


def _main() -> None:
    # What vLLM prints must not mix with the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    import vllm.entrypoints.llm  # noqa: F401 - the forks need not import it again

    for line in sys.stdin.buffer:
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(msgspec.json.encode(_answer(msgspec.json.decode(line, type=Question))))
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        answers.write((said or msgspec.json.encode(Answer(failure="vLLM's process died"))) + b"\n")
        answers.flush()


def _answer(question: Question) -> Answer:
    try:
        return Answer(logprobs=_logprobs(question))
    except Exception as error:
        return Answer(failure=f"{type(error).__name__}: {error}"[:2000])


def _logprobs(question: Question) -> list[list[list[float]]]:
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.lora.request import LoRARequest

    options: dict[str, Any] = {
        "dtype": question.dtype,
        "enable_lora": True,
        "max_loras": 2,
        "max_lora_rank": 8,
        "max_model_len": 512,
        "max_num_seqs": 16,
        "kv_cache_memory_bytes": 64 * 2**20,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
    }
    llm = LLM(question.folder, **options)
    adapters = [None] + [
        LoRARequest(Path(folder).name, number, folder)
        for number, folder in enumerate(question.adapters, start=1)
    ]
    rows = [(prompt, adapter) for prompt in question.prompts for adapter in adapters]
    outputs = llm.generate(
        [TokensPrompt(prompt_token_ids=prompt) for prompt, _ in rows],
        SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0),
        lora_request=[adapter for _, adapter in rows],
        use_tqdm=False,
    )
    found = [
        [next(iter(places.values())).logprob for places in output.prompt_logprobs[1:]] for output in outputs
    ]
    return [found[number :: len(adapters)] for number in range(len(adapters))]


if __name__ == "__main__":
    _main()
