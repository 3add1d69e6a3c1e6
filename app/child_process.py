"""Long computing in a process of its own: it takes neither the service's one interpreter nor its memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar, TypeVarTuple, Unpack

from anyio import from_thread, to_process

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


def in_child(function: Callable[[Unpack[Arguments]], Result], *arguments: *Arguments) -> Result:
    """What the function returns or raises; called from a route that runs in a thread.

    As many run at once as the machine has cores; the others wait. Processes stay for the next call.
    """
    return from_thread.run(partial(to_process.run_sync, function, *arguments, cancellable=True))
