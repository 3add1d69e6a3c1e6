"""Runs long computations in child processes, which spare the service its interpreter and its memory.

As many run at once as the machine has cores, and the others wait. Processes are reused for later calls.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from types import ModuleType
from typing import Any, TypeVar, TypeVarTuple, Unpack

from anyio import CapacityLimiter, from_thread, open_process, to_process
from anyio.abc import Process

from app.core.child_environment import child_environment
from app.core.errors import UnavailableError

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

_LOOK_SECONDS = 1.0
"""Time between two checks whether the client has hung up, in seconds."""
_opening: ContextVar[list[asyncio.Task[Process]]] = ContextVar("_opening")


async def run_in_child(
    function: Callable[[Unpack[Arguments]], Result],
    *arguments: *Arguments,
    limiter: CapacityLimiter | None = None,
    seconds: float | None = None,
) -> Result:
    """Run the function in a child process; return or raise what it does. Cancelling ends the process.

    Raises:
        BrokenWorkerProcess: the process died.
        TimeoutError: the function took longer than `seconds`, not counting the wait for a free process; the
            process is ended.
    """
    async with limiter or to_process.current_default_process_limiter():
        async with asyncio.timeout(seconds):
            return await _run(function, *arguments)


async def _run(function: Callable[[Unpack[Arguments]], Result], *arguments: *Arguments) -> Result:
    """Run the call; if the caller is cancelled, kill its process."""
    opening: list[asyncio.Task[Process]] = []
    token = _opening.set(opening)
    try:
        return await to_process.run_sync(
            _call, function, *arguments, cancellable=True, limiter=CapacityLimiter(1)
        )
    except asyncio.CancelledError:
        for process in [await each for each in opening]:
            with suppress(ProcessLookupError):
                process.kill()
            await process.aclose()
        raise
    finally:
        _opening.reset(token)


def _call(function: Callable[[Unpack[Arguments]], Result], *arguments: *Arguments) -> Result:
    """Call the function, in the child.

    anyio removes `__main__` from a child whose parent was not started from a file (`python -c`), and
    multiprocessing needs one to start processes.
    """
    sys.modules.setdefault("__main__", ModuleType("__main__"))
    return function(*arguments)


def in_child(
    function: Callable[[Unpack[Arguments]], Result],
    *arguments: *Arguments,
    seconds: float | None = None,
    is_abandoned: Callable[[], Awaitable[bool]] | None = None,
) -> Result:
    """Do as `run_in_child`, from a route that runs in a thread. It also ends when the client hangs up.

    Raises:
        UnavailableError: the client has hung up.
    """
    call = partial(run_in_child, function, *arguments, seconds=seconds)
    return from_thread.run(call if is_abandoned is None else partial(_while_wanted, call, is_abandoned))


async def _while_wanted(
    call: Callable[[], Coroutine[Any, Any, Result]], is_abandoned: Callable[[], Awaitable[bool]]
) -> Result:
    task = asyncio.create_task(call())
    try:
        while not (await asyncio.wait([task], timeout=_LOOK_SECONDS))[0]:
            if await is_abandoned():
                raise UnavailableError("The client has hung up; nothing was created.", code="client_gone")
        return task.result()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _open_process(*arguments: Any, **options: Any) -> Process:
    """Do as anyio does, but without secrets, and let the caller end a process that is still starting."""
    task = asyncio.create_task(open_process(*arguments, env=child_environment(), **options))
    _opening.get([]).append(task)
    return await asyncio.shield(task)


# A call that is cancelled while its process starts would leave the process running (anyio 4.16,
# `to_process.run_sync`), and uvloop, which waits for every child, would never stop.
to_process.open_process = _open_process  # pyright: ignore[reportPrivateImportUsage]
