"""Grammars of JSON Schemas: compiled in threads that leave the cores to the model.

To compile a schema may take seconds, on every core, and cannot be interrupted. The gateway bounds what is
compiled (`app.completions.schemas.constraint`). Here it is made to hold up nobody meanwhile: its threads give
way to the model's, small schemas do not wait for large ones, and what has not begun when its caller leaves
never does.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, cast

from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

_AT_ONCE = 4
_SMALL = 5
_LARGE = 19
"""The kernel's nice values of threads, with which each gets about a third, or a seventieth, of what the model
gets of a core. Threads that they start, such as xgrammar's eight, inherit them."""
_SMALL_CHARACTERS = 8192
_COSTLY = re.compile(r'"(?:pattern|minLength|maxLength)"')
"""The keywords that take longest to compile; a property of such a name counts as well."""


class Lanes:
    """Compiles grammars as the executor of vLLM's `StructuredOutputManager`."""

    def __init__(self) -> None:
        self._small = ThreadPoolExecutor(_AT_ONCE, "small-grammar", partial(_give_way, _SMALL))
        self._large = ThreadPoolExecutor(_AT_ONCE, "large-grammar", partial(_give_way, _LARGE))
        self._unfinished: set[Future[Any]] = set()

    @property
    def is_compiling(self) -> bool:
        """Whether a grammar is compiled, or waits for it."""
        return bool(self._unfinished)

    def submit(self, compile_for: Callable[[Request], Any], request: Request) -> Future[Any]:
        """Compile the grammar of a request, as soon as its lane is free."""
        compiled = (self._small if _is_small(request) else self._large).submit(compile_for, request)
        self._unfinished.add(compiled)
        compiled.add_done_callback(self._unfinished.discard)
        return compiled

    def shutdown(self, *, wait: bool = True, cancel_futures: bool = False) -> None:
        """End the threads."""
        for lane in (self._small, self._large):
            lane.shutdown(wait=wait, cancel_futures=cancel_futures)


def compile_in_background(manager: StructuredOutputManager) -> Lanes:
    """Make vLLM compile grammars in such threads, which are returned."""
    manager.executor.shutdown(wait=False)
    lanes = Lanes()
    manager.executor = cast("ThreadPoolExecutor", lanes)
    return lanes


def cancel_compilation(requests: Iterable[Request]) -> None:
    """Cancel what is to be compiled for requests that have ended, if it has not begun yet."""
    for request in requests:
        compiling: object = getattr(request.structured_output_request, "_grammar", None)
        if isinstance(compiling, Future):
            cast("Future[object]", compiling).cancel()


def _is_small(request: Request) -> bool:
    compiled = request.structured_output_request
    _, grammar = compiled.structured_output_key if compiled else ("", "")
    return len(grammar) <= _SMALL_CHARACTERS and not _COSTLY.search(grammar)


def _give_way(niceness: int) -> None:
    thread = threading.get_native_id()
    inherited = os.getpriority(os.PRIO_PROCESS, thread)  # which nobody but root may lower
    os.setpriority(os.PRIO_PROCESS, thread, max(niceness, inherited))
