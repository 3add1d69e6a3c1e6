"""Context managers that may take long to enter and to leave, used from a coroutine."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from types import TracebackType
from typing import TypeVar

from anyio import CancelScope, CapacityLimiter, to_thread

Value = TypeVar("Value")


@asynccontextmanager
async def entered_in_thread(context: AbstractContextManager[Value]) -> AsyncGenerator[Value]:
    """Enter the context in one thread and leave it in another, so that the event loop never waits for it."""
    entered = ExitStack()

    async def leave(
        kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        # A limiter of its own, as what would free the other threads may be waiting for this one.
        with CancelScope(shield=True):
            leaving = CapacityLimiter(1)
            return await to_thread.run_sync(entered.__exit__, kind, error, traceback, limiter=leaving)

    async with AsyncExitStack() as stack:
        stack.push_async_exit(leave)
        yield await to_thread.run_sync(entered.enter_context, context)
