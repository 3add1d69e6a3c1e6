"""Runs a grader on one answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, TypeVarTuple, Unpack

import msgspec
import orjson
from pydantic import ValidationError

from app.comparisons.graders.base import JudgeRequest, invalid_grader
from app.comparisons.questions import Question, answer_text
from app.comparisons.tool_calls import calls_in
from app.completions.schemas import ChatCompletionRequest
from app.core.child_process import run_in_child
from app.core.errors import InvalidRequestError, ToqueError, UnavailableError
from app.core.validation_errors import reason
from app.graders.schemas import GraderErrors, GraderMetadata, GraderRun, RunGrader, TokenUsage

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

GRADING_SECONDS = 10.0
"""The time that filling in templates may take, and that comparing texts may."""
_PATHS = {"model": ".model", "messages": ".input"} | {
    name: f".sampling_params.{name}" for name in ("seed", "top_p", "temperature", "reasoning_effort")
}
"""Where a grader has what a chat completion calls by these names."""


Ask = Callable[[ChatCompletionRequest], Awaitable[bytes]]
"""Has a chat completion answered for the caller's project, as the gateway does."""


class Judgement(msgspec.Struct):
    """A judge's reply; it has no text if the judge refused or failed."""

    text: str | None
    model: str | None = None
    usage: TokenUsage = msgspec.field(default_factory=TokenUsage)
    errors: dict[str, Any] = {}
    """Fields of `GraderErrors`."""


async def run_grader(ask: Ask, request: RunGrader) -> GraderRun:
    """Ask the grader's judges, if it has any, and grade the answer.

    Raises:
        NotFoundError: the project has no such model as a judge is.
        InvalidRequestError: an engine refused what a judge was asked, or grading takes too long.
        UnavailableError: no engine is ready.
    """
    started = time.perf_counter()
    grader, answer = request.grader, request.model_sample
    question = Question(line=1, messages=[], reference="", item=request.item)
    calls = calls_in(answer)
    asked = await _in_time(grader.judge_requests, question, answer, calls) if grader.has_judges else []
    judgements = await _ask_judges(ask, asked)
    replies = [judgement.text for judgement in judgements]
    grade = await _in_time(grader.grade, question, answer, replies, calls)
    errors: dict[str, Any] = {} if grade.error is None else {grade.error: True}
    usage: dict[str, TokenUsage] = {}
    for judgement in judgements:
        errors |= judgement.errors
        if judgement.model is not None:
            usage[judgement.model] = _sum(usage.get(judgement.model), judgement.usage)
    reward = grade.score if grade.reward is None else grade.reward
    return GraderRun(
        reward=reward or 0.0,
        metadata=GraderMetadata(
            name=grader.name,
            type=grader.type,
            errors=GraderErrors(**errors),
            execution_time=time.perf_counter() - started,
            scores=grade.parts,
            token_usage=sum(each.total_tokens for each in usage.values()) if judgements else None,
            sampled_model_name=next(iter(usage), None),
        ),
        sub_rewards=grade.parts,
        model_grader_token_usage_per_model=usage,
    )


async def _ask_judges(ask: Ask, requests: Sequence[JudgeRequest]) -> list[Judgement]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_ask(ask, request)) for request in requests]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


async def _ask(ask: Ask, request: JudgeRequest) -> Judgement:
    body = _chat_completion(request)
    try:
        content = await ask(body)
    except UnavailableError as error:
        if error.body.code != "engine_error":
            raise
        details = {"model_grader_server_error_details": error.body.message}
        return Judgement(None, errors={"model_grader_server_error": True} | details)
    except ToqueError as error:
        error.body.param = f"grader{request.path}{_PATHS.get(error.body.param or '', '.input')}"
        raise
    return _read(content)


def _chat_completion(request: JudgeRequest) -> ChatCompletionRequest:
    try:
        return ChatCompletionRequest.model_validate(
            {"model": request.model, "messages": request.messages} | request.fields
        )
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        param = f"grader{request.path}{_PATHS.get(str(problem['loc'][0]), '')}"
        raise invalid_grader(param, f"its judge cannot be asked this: {reason(problem)}") from None


def _read(content: bytes) -> Judgement:
    """Return what a chat completion says."""
    answer: Any = orjson.loads(content)
    message = answer["choices"][0]["message"]
    usage = answer["usage"]
    tokens = TokenUsage(
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        total_tokens=usage["total_tokens"],
        cached_tokens=_cached(usage),
    )
    if message.get("refusal"):
        return Judgement(None, answer["model"], tokens, {"model_grader_refusal_error": True})
    return Judgement(answer_text(message.get("content"), None), answer["model"], tokens)


async def _in_time(function: Callable[[Unpack[Arguments]], Result], *arguments: *Arguments) -> Result:
    """Do as `run_in_child`, for `GRADING_SECONDS` at most.

    Raises:
        InvalidRequestError: it takes longer.
    """
    try:
        return await run_in_child(function, *arguments, seconds=GRADING_SECONDS)
    except TimeoutError:
        raise InvalidRequestError(
            f"The grader takes longer than {GRADING_SECONDS:g} s on these texts; shorten them.",
            code="invalid_grader",
            param="grader",
        ) from None


def _sum(before: TokenUsage | None, usage: TokenUsage) -> TokenUsage:
    if before is None:
        return usage
    return TokenUsage(**{name: count + getattr(usage, name) for name, count in before.model_dump().items()})


def _cached(usage: dict[str, Any]) -> int:
    details: dict[str, Any] = usage.get("prompt_tokens_details") or {}
    return details.get("cached_tokens") or 0
