"""An engine process whose vLLM is a stand-in: the process, its row, its health and its end are real."""

from __future__ import annotations

import sys

from workers.inference import engine
from workers.inference.vllm_process import Vllm


def _command(vllm: Vllm, *_: object) -> list[str]:
    return [sys.executable, "-m", "tests.cluster.stand_in_vllm", vllm._listen]  # pyright: ignore[reportPrivateUsage]


if __name__ == "__main__":
    Vllm._command = _command  # pyright: ignore[reportPrivateUsage]
    raise SystemExit(engine.main())
