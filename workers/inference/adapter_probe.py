"""Asks vLLM for an answer of each adapter that was imported, and quarantines those that can give none.

What can be told from an adapter's files is told before it is published (`app.models.adapters.validation`).
Whether activations stay in bfloat16's range depends on the base model as well, and only an answer shows it.
What a job has trained is compared with the trainer instead (`workers.training.parity`).
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Generator
from http import HTTPStatus
from typing import Any, Protocol, cast

from sqlalchemy.exc import SQLAlchemyError

from app.core.database import Database
from app.models.adapters import service

log = logging.getLogger("toque.engine")

_LONGEST_SECONDS = 60.0
"""How long an answer may take; the probe is tried again later."""
_LONGEST_PAUSE_SECONDS = 60.0
_PROMPT = "Tell me about the weather in autumn, please."
_TOKENS = 16
_UNLIKELY = -6.0
"""A log-probability that the likeliest token of a language model always exceeds: 0.25 %."""


class ServerError(OSError):
    """vLLM has answered with a status other than 200."""

    def __init__(self, path: str, status: int) -> None:
        super().__init__(f"{path}: status {status}")
        self.status = status


class Server(Protocol):
    """What is asked: `workers.inference.vllm_process.Vllm`."""

    def post(self, path: str, body: bytes = b"") -> Generator[None, None, bytes]:
        """Yields until there is an answer, and returns its body.

        Raises:
            ServerError: the status is not 200.
            OSError: there is no answer.
        """
        ...


class AdapterProbe:
    """Probes the adapters of one base model, one after another, without ever waiting for vLLM."""

    def __init__(self, database: Database, base_model: str, every: float) -> None:
        self._database = database
        self._base_model = base_model
        self._every = every
        self._due_at = 0.0
        self._failures = 0
        """Since a probe told something of an adapter."""
        self._running: Generator[None] | None = None

    def advance(self, server: Server) -> None:
        """Begins the next probe if one is due, or goes on with the one that runs."""
        if self._running is None:
            if time.monotonic() < self._due_at:
                return
            self._running = self._probe_next(server)
        try:
            next(self._running)
        except StopIteration:
            self._failures = 0
            self._end()
        except (OSError, SQLAlchemyError, LookupError, TypeError, ValueError) as error:
            # There is no answer, or none that is understood: nothing is learnt about the adapter.
            log.warning("an adapter could not be probed: %s", error)
            self._failures += 1
            self._end()

    def stop(self) -> None:
        """Breaks off a probe that runs."""
        if self._running is not None:
            self._running.close()
            self._end()

    def _end(self) -> None:
        self._running = None
        pause = min(self._every * 2.0 ** min(self._failures, 10), max(self._every, _LONGEST_PAUSE_SECONDS))
        self._due_at = time.monotonic() + pause

    def _probe_next(self, server: Server) -> Generator[None]:
        with self._database.reader() as session:
            name = service.find_unprobed(session, self._base_model)
        if name is None:
            return
        expected = yield from self._ask(server, self._base_model)
        try:
            answer = yield from self._ask(server, name)
        except ServerError as error:
            if error.status != HTTPStatus.INTERNAL_SERVER_ERROR:
                raise  # the plugin that loads adapters has seen to it
            yield from self._ask(server, self._base_model)  # raises if it is not the adapter's fault
            problem = "The engine cannot compute its answers"
        else:
            problem = find_problem(answer, expected)
        with self._database.writer() as session:
            if problem is None:
                service.record_probe(session, name)
            else:
                log.warning("%s is quarantined: %s", name, problem)
                service.quarantine(session, name, problem)

    def _ask(self, server: Server, model: str) -> Generator[None, None, dict[str, Any]]:
        """Yields until the model has answered, and returns its tokens with their log-probabilities.

        Raises:
            OSError: there is no answer, or none in time.
        """
        request = {
            "model": model,
            "prompt": _PROMPT,
            "max_tokens": _TOKENS,
            "temperature": 0,
            "logprobs": 0,
            "priority": 1,  # after those that somebody waits for
        }
        deadline = time.monotonic() + _LONGEST_SECONDS
        asking = server.post("/v1/completions", json.dumps(request).encode())
        try:
            while True:
                next(asking)
                if time.monotonic() > deadline:
                    raise OSError(f"{model} did not answer in {_LONGEST_SECONDS:.0f} s")
                yield
        except StopIteration as end:
            return json.loads(end.value)["choices"][0]["logprobs"]
        finally:
            asking.close()


def find_problem(answer: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """Returns what is wrong with an adapter's answer, beside that of its base; None if nothing is."""
    logprobs: list[float | None] = answer["token_logprobs"]
    if any(logprob is None or not math.isfinite(logprob) for logprob in logprobs):
        return "The probabilities of its answers are not numbers: its weights are too large for its base"
    if logprobs and max(cast("list[float]", logprobs)) < _UNLIKELY:
        return (
            f"No token is likely to it: the first that it chooses has a log-probability of {logprobs[0]:.1f}"
        )
    tokens, base_tokens = answer["tokens"], expected["tokens"]
    goes_on = len(tokens) >= _TOKENS  # one that has learnt to answer with a single word ends earlier
    if goes_on and len(set(tokens)) == 1 < len(set(base_tokens)):
        return f"It answers nothing but {ascii(tokens[0])[:40]}, again and again, which its base does not"
    return None
