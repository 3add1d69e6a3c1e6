"""Long computing in a process of its own: it takes neither the service's one interpreter nor its memory.

As many run at once as the machine has cores; the others wait. Processes stay for the next call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar, TypeVarTuple, Unpack

from anyio import CapacityLimiter, from_thread, open_process, to_process
from anyio.abc import Process

from app.core.errors import UnavailableError

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

_LOOK_SECONDS = 1.0
"""So soon a client that has hung up is noticed."""
_opening: ContextVar[list[asyncio.Task[Process]]] = ContextVar("_opening")


async def run_in_child(
    function: Callable[[Unpack[Arguments]], Result],
    *arguments: *Arguments,
    limiter: CapacityLimiter | None = None,
    seconds: float | None = None,
) -> Result:
    """What the function returns or raises; a caller that is cancelled takes the process with it.

    Raises:
        BrokenWorkerProcess: the process died.
        TimeoutError: the function took longer than `seconds`, the wait for its turn left out; it is ended.
    """
    async with limiter or to_process.current_default_process_limiter():
        async with asyncio.timeout(seconds):
            return await _run(function, *arguments)


async def _run(function: Callable[[Unpack[Arguments]], Result], *arguments: *Arguments) -> Result:
    """The call, its process ended where the caller is."""
    opening: list[asyncio.Task[Process]] = []
    token = _opening.set(opening)
    try:
        return await to_process.run_sync(function, *arguments, cancellable=True, limiter=CapacityLimiter(1))
    except asyncio.CancelledError:
        for process in [await each for each in opening]:
            with suppress(ProcessLookupError):
                process.kill()
            await process.aclose()
        raise
    finally:
        _opening.reset(token)


def in_child(
    function: Callable[[Unpack[Arguments]], Result],
    *arguments: *Arguments,
    seconds: float | None = None,
    is_abandoned: Callable[[], Awaitable[bool]] | None = None,
) -> Result:
    """The same, called from a route that runs in a thread; ended, too, once nobody waits for the answer.

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
    """As anyio's, but what has begun to start is there to be ended by whoever called."""
    task = asyncio.create_task(open_process(*arguments, **options))
    _opening.get([]).append(task)
    return await asyncio.shield(task)


# A call that is cancelled while its process starts would leave that running (anyio 4.16,
# `to_process.run_sync`), and uvloop, which waits for every child, would never end.
to_process.open_process = _open_process  # pyright: ignore[reportPrivateImportUsage]
