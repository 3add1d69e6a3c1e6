"""A stand-in for vLLM."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.engine_thread import FAKE
from workers.inference.vllm_process import Vllm


@pytest.fixture
def pids_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Has engines start the stand-in, which writes its own and its child's process id here."""

    def command(vllm: Vllm, *_: object) -> list[str]:
        return [sys.executable, FAKE, str(vllm._socket)]

    monkeypatch.setattr(Vllm, "_command", command)
    monkeypatch.setenv("FAKE_VLLM_PIDS", str(tmp_path / "pids"))
    monkeypatch.setenv("FAKE_VLLM_SICK", str(tmp_path / "sick"))
    return tmp_path / "pids"
