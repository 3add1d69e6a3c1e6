"""Asks one model one question, through the gateway or at an external endpoint, with retries."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import msgspec
import orjson
from pydantic import ValidationError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from app.comparisons.external import Endpoint, EndpointAwayError, ExternalEndpoints
from app.comparisons.plan import Candidate
from app.comparisons.questions import Question, answer_text
from app.completions.gateway import Gateway
from app.completions.retrying import BACK_OFF, TRIES, is_hopeless
from app.completions.schemas import ChatCompletionRequest
from app.core.database import DATABASE_AWAY
from app.core.errors import ToqueError, UnavailableError

_LONGEST_WISH = 60.0
"""The longest pause between two requests, in seconds, that an external endpoint can ask for."""
_LONGEST_SILENCE = 600.0
"""The time in seconds after which an external endpoint that answers nothing is given up."""
_LONGEST_WAIT = 1800.0
"""The time in seconds after which one question to an external endpoint is given up."""
_MOST_ERROR_CHARACTERS = 1000
_SYSTEM_ROLES = ("system", "developer")


class Reply(msgspec.Struct, frozen=True):
    """A model's answer; it has no text if there is an `error`."""

    text: str | None
    error: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatClient:
    """Sends chat completions in the name of one project."""

    def __init__(self, gateway: Gateway, external: ExternalEndpoints, project_id: str) -> None:
        self._gateway = gateway
        self._external = external
        self._project_id = project_id
        self._away_since: dict[str, float] = {}
        """Since when (monotonic seconds) each external endpoint that is away has answered nothing."""

    async def ask(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        endpoint: Endpoint | None = None,
        **fields: Any,
    ) -> Reply:
        """Return the reply. Engines and endpoints that are away are waited for; a refusal is its error.

        Args:
            model: the served name of the model or, with an `endpoint`, its name there.
            messages: the conversation.
            endpoint: the endpoint of an external model.
            **fields: further fields of a chat completion.
        """
        try:
            body = ChatCompletionRequest.model_validate({"model": model, "messages": messages} | fields)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            return Reply(None, f"The question cannot be asked: {where}: {first['msg']}")
        started = time.perf_counter()
        content = b""
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type((UnavailableError, *DATABASE_AWAY)),
                wait=_pause,
                stop=partial(self._is_hopeless, endpoint),
                reraise=True,
            ):
                with attempt:
                    started = time.perf_counter()
                    content = await self._send(body, endpoint)
        except ToqueError as error:
            return Reply(None, storable(error.body.message)[:_MOST_ERROR_CHARACTERS])
        return _reply(content, time.perf_counter() - started)

    async def _send(self, body: ChatCompletionRequest, endpoint: Endpoint | None) -> bytes:
        if endpoint is None:
            return await self._gateway.ask(self._project_id, body)
        content = body.model_dump_json(exclude_none=True, exclude_unset=True, by_alias=True)
        try:
            answer = await self._external.ask(endpoint, content.encode())
        except EndpointAwayError:
            self._away_since.setdefault(endpoint.base_url, time.monotonic())
            raise
        except ToqueError:
            self._away_since.pop(endpoint.base_url, None)
            raise
        self._away_since.pop(endpoint.base_url, None)
        return answer

    def _is_hopeless(self, endpoint: Endpoint | None, state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        if endpoint is None or not isinstance(error, EndpointAwayError):
            return is_hopeless(state)
        silence = time.monotonic() - self._away_since.get(endpoint.base_url, time.monotonic())
        waited_for = silence < _LONGEST_SILENCE and (state.seconds_since_start or 0.0) < _LONGEST_WAIT
        return not waited_for and state.attempt_number >= TRIES


def prompt(
    candidate: Candidate, question: Question, examples: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the conversation that the candidate's model is shown.

    The candidate's system prompt replaces the question's own; examples come between it and the question.
    """
    own = list(itertools.takewhile(lambda turn: turn["role"] in _SYSTEM_ROLES, question.messages))
    system = own if candidate.system is None else [{"role": "system", "content": candidate.system}]
    return [*system, *examples, *question.messages[len(own) :]]


def storable(text: str) -> str:
    """Return the text without what a database cannot store: NUL characters and lone surrogates."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def _reply(content: bytes, seconds: float) -> Reply:
    try:
        answer: Any = orjson.loads(content)
        message = answer["choices"][0]["message"]
        calls = [_call(call) for call in message.get("tool_calls") or ()]
        text = answer_text(message.get("content"), calls)
        tokens = [_tokens(answer.get("usage"), name) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, LookupError, TypeError, AttributeError):
        return Reply(None, "What came back is no chat completion.")
    return Reply(storable(text), None, tokens[0], tokens[1], seconds, calls or None)


def _call(call: Any) -> dict[str, Any]:
    """Return a call of an answer with what is stored of it."""
    function = {name: storable(str(call["function"][name])) for name in ("name", "arguments")}
    return {"id": storable(str(call.get("id") or "")), "type": "function", "function": function}


def _tokens(usage: Any, name: str) -> int:
    """Return the count that an endpoint reports, or 0 if it reports none that is possible."""
    count: Any = cast("dict[str, Any]", usage).get(name) if isinstance(usage, dict) else None
    is_count = isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 2**31
    return count if is_count else 0


def _pause(state: RetryCallState) -> float:
    """Return the pause before the next try: longer each time, or what an external endpoint asks for."""
    error = state.outcome.exception() if state.outcome else None
    wish = error.pause if isinstance(error, EndpointAwayError) else 0.0
    return max(BACK_OFF(state), min(wish, _LONGEST_WISH))
