"""Context managers whose entry may take long, entered from a coroutine."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from typing import TypeVar

from anyio import to_thread

Value = TypeVar("Value")


@asynccontextmanager
async def entered_in_thread(context: AbstractContextManager[Value]) -> AsyncGenerator[Value]:
    """Enter the context in a thread; leaving it must be quick."""
    with ExitStack() as stack:
        yield await to_thread.run_sync(stack.enter_context, context)
