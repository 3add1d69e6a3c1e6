"""Grammars of JSON Schemas: compiled in threads that leave the cores to the model.

To compile a schema may take seconds, on every core, and cannot be interrupted. The gateway bounds what is
compiled (`app.completions.schemas.constraint`). Here it is made to hold up nobody meanwhile: its threads get
the time that the model does not need, a small schema does not wait for a large one to end, and what has not
begun yet when its caller leaves is never compiled.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

_AT_ONCE = 8
_LOWEST_PRIORITY = 19
"""The kernel's nice value. Threads that a thread starts, as xgrammar's does, have its own."""


def compile_in_background(manager: StructuredOutputManager) -> None:
    """Make vLLM compile grammars in such threads."""
    manager.executor.shutdown(wait=False)
    manager.executor = ThreadPoolExecutor(_AT_ONCE, "grammar", initializer=_give_way)


def cancel_compilation(requests: Iterable[Request]) -> None:
    """Cancel what is to be compiled for requests that have ended, if it has not begun yet."""
    for request in requests:
        compiling: object = getattr(request.structured_output_request, "_grammar", None)
        if isinstance(compiling, Future):
            cast("Future[object]", compiling).cancel()


def _give_way() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
