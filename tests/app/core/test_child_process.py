"""Computing in a child: whoever is cancelled takes the child with it."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import uvloop
from anyio import CapacityLimiter

from app.core.child_process import run_in_child


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "anyio.to_process" in child.cmdline()]


def test_the_answer_comes_from_another_process() -> None:
    async def ask() -> tuple[int, int]:
        return await run_in_child(os.getpid), await run_in_child(os.getpid)

    first, second = uvloop.run(ask())
    assert first == second != os.getpid(), "it stays for the next call"


def test_a_child_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOQUE_DATABASE_URL", "postgresql+psycopg://toque:secret-1@db/toque")
    monkeypatch.setenv("TOQUE_API_KEY", "secret-2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-3")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")

    environment = uvloop.run(run_in_child(Path("/proc/self/environ").read_bytes))

    assert re.findall(rb"secret-\d", environment) == []
    assert b"TOKENIZERS_PARALLELISM=false" in environment


@pytest.mark.timeout(60)
def test_a_call_that_takes_too_long_is_ended_and_the_next_has_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = len(children())
    limits: list[float | None] = []
    timeout = asyncio.timeout

    def limit(seconds: float | None) -> asyncio.Timeout:
        limits.append(seconds)
        return timeout(seconds)

    monkeypatch.setattr(asyncio, "timeout", limit)

    async def call() -> int:
        turn = CapacityLimiter(1)
        await turn.acquire_on_behalf_of(turn)
        waiting = asyncio.create_task(run_in_child(os.getpid, limiter=turn, seconds=30))
        while not turn.statistics().tasks_waiting:  # noqa: ASYNC110 - the loop's next step may be its
            await asyncio.sleep(0)
        assert limits == [], "its wait does not count"
        turn.release_on_behalf_of(turn)
        assert await waiting != os.getpid()
        assert limits == [30]
        with pytest.raises(TimeoutError):
            await run_in_child(time.sleep, 600, limiter=turn, seconds=0.5)
        return await run_in_child(os.getpid, limiter=turn, seconds=30)

    assert uvloop.run(call()) != os.getpid()
    assert len(children()) == before


@pytest.mark.timeout(60)
def test_a_call_that_is_cancelled_while_its_process_starts_leaves_none() -> None:
    before = len(children())

    async def call_and_cancel() -> None:
        call = asyncio.create_task(run_in_child(os.getpid))
        while len(children()) == before:  # noqa: ASYNC110 - the loop's next step may start it
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    uvloop.run(call_and_cancel())  # ends: uvloop waits for every child
    assert len(children()) == before


def test_a_child_of_a_program_without_a_file_starts_processes() -> None:
    in_child = "__import__('multiprocessing.spawn').spawn.get_preparation_data('a child')['name']"
    program = (
        "import uvloop; from app.core.child_process import run_in_child; "
        f'print(uvloop.run(run_in_child(eval, "{in_child}")))'
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("a child\n", "")
