"""Checks that an engine serves what was trained: equal tokens, and nearly equal log-probabilities."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
from sqlalchemy.orm import Session

from app.completions import service as completions_service
from app.completions.models import Engine
from app.completions.vllm_client import RetryableError, VllmConnection
from app.core.errors import ToqueError
from app.core.settings import Settings
from app.datasets.formats import parse_line
from app.datasets.jinja_template import template_tools
from app.datasets.lines import read_lines
from app.datasets.types import ChatExample, CompletionExample, Example, Message, PreferenceExample
from workers.training.protocol import Sample

TOLERANCE = 0.15
"""The largest accepted mean distance of log-probabilities, in nats. bfloat16 and different kernels cause
about 0.03 (measured on random adapters); a wrong template, scale or adapter causes several times as much."""
_SILENCE_SECONDS = 120.0


class ParityError(Exception):
    """The engine does not serve the trained model; the message says how it differs."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"The served model is not the trained one: {problem}")


class NoAnswerError(Exception):
    """No engine could be asked for an answer to compare with."""


class Parity(msgspec.Struct, frozen=True):
    """The distance between the served model and the trained one."""

    tokens: int
    """Number of target tokens that were compared."""
    distance: float
    """Mean absolute difference of the log-probabilities of the served and the trained model, in nats."""
    base_distance: float
    """The same for the base model alone, which is due to kernels and rounding."""
    effect: float
    """The same between the trained model and the base model, both in the trainer."""
    tolerance: float = TOLERANCE

    def __str__(self) -> str:
        return f"Served as trained: {self.figures}"

    @property
    def figures(self) -> str:
        """The distances as text."""
        return (
            f"log-probabilities of {self.tokens} tokens differ by {self.distance:.4f} in the mean "
            f"(at most {self.tolerance}; the base's by {self.base_distance:.4f}; training changed "
            f"them by {self.effect:.4f})"
        )


def compare(engine: Engine, model: str, training_file: Path, samples: Sequence[Sample]) -> Parity:
    """Compare the engine's log-probabilities of the samples, for the model and its base, with the trainer's.

    Raises:
        ParityError: the tokens or log-probabilities differ, or the engine serves the base model.
        NoAnswerError: the engine cannot be asked.
    """
    try:
        return asyncio.run(_compare(engine, model, training_file, samples))
    except (RetryableError, ToqueError, OSError) as error:
        raise NoAnswerError(f"the engine cannot be asked: {str(error)[:200]}") from error


def find_engine(session: Session, settings: Settings, base_model: str) -> Engine:
    """Return an engine that serves the base model now.

    Raises:
        NoAnswerError: there is no such engine.
    """
    engines = completions_service.live_engines(session, settings, base_model)
    ready = next((engine for engine in engines if engine.status == "ready"), None)
    if ready is None:
        raise NoAnswerError(f"no engine of {base_model} is ready")
    return ready


async def _compare(engine: Engine, model: str, training_file: Path, samples: Sequence[Sample]) -> Parity:
    connection = VllmConnection(engine.url, engine.api_key, _SILENCE_SECONDS)
    examples = _examples(training_file, {sample.example for sample in samples})
    served: list[float] = []
    served_base: list[float] = []
    try:
        for sample in samples:
            await _check_tokens(connection, engine.base_model, examples[sample.example], sample)
            served += await _logprobs(connection, model, sample)
            served_base += await _logprobs(connection, engine.base_model, sample)
    finally:
        await connection.close()

    trained = [logprob for sample in samples for logprob in sample.trained]
    base = [logprob for sample in samples for logprob in sample.base]
    parity = Parity(
        tokens=len(trained),
        distance=_distance(served, trained),
        base_distance=_distance(served_base, base),
        effect=_distance(trained, base),
    )
    if not math.isfinite(parity.distance):
        raise ParityError("the engine's log-probabilities are not numbers")
    if served == served_base and trained != base:
        raise ParityError(f"the engine answers as the base alone: {parity.figures}")
    if parity.distance > TOLERANCE:
        raise ParityError(f"the engine serves something else: {parity.figures}")
    return parity


def _examples(training_file: Path, numbers: Collection[int]) -> dict[int, Example]:
    """Read the examples with these numbers from the file."""
    lines = enumerate(line for _, line in islice(read_lines(training_file), max(numbers) + 1))
    return {number: parse_line(line) for number, line in lines if number in numbers}


async def _check_tokens(connection: VllmConnection, base: str, example: Example, sample: Sample) -> None:
    """Check that the engine tokenizes the prompt of the example's last answer as the trainer did."""
    chat = _conversation(example)
    if chat is None:
        return
    last = max(number for number, message in enumerate(chat.messages) if message.is_target)
    prompt = chat.messages[:last]
    body: dict[str, Any] = {
        "model": base,
        "messages": [requested(message) for message in prompt],
        "add_generation_prompt": True,
    }
    if chat.tools:
        body["tools"] = template_tools(chat.tools)
    tokens: list[int] = (await _ask(connection, "/tokenize", body))["tokens"]
    trained = sample.input_ids[: len(tokens)]
    if tokens != trained:
        place = next(
            (n for n, pair in enumerate(zip(tokens, trained, strict=False)) if pair[0] != pair[1]),
            len(trained),
        )
        raise ParityError(
            f"example {sample.example + 1} of the training file has other tokens in the engine than in the "
            f"trainer, from {place + 1} on: {tokens[place : place + 5]}, not {trained[place : place + 5]}"
        )


def requested(message: Message) -> dict[str, Any]:
    """Return the message as a request has it: thoughts by vLLM's name for them, and no weight."""
    fields: dict[str, Any] = msgspec.to_builtins(message)
    if message.thoughts is not None:
        fields["reasoning"] = message.thoughts
    return {name: value for name, value in fields.items() if name not in ("weight", "reasoning_content")}


async def _logprobs(connection: VllmConnection, model: str, sample: Sample) -> list[float]:
    """Return the log-probability of each target token of the sample, given the tokens before it."""
    body = {
        "model": model,
        "prompt": sample.input_ids,
        "max_tokens": 1,
        "echo": True,
        "logprobs": 0,
        "temperature": 0,
    }
    answer = await _ask(connection, "/v1/completions", body)
    logprobs: list[float] = answer["choices"][0]["logprobs"]["token_logprobs"]
    return [logprobs[place] for place in sample.targets]


async def _ask(connection: VllmConnection, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await connection.post(path, msgspec.json.encode(body))
    return json.loads(await connection.read_all(answer))


def _distance(left: Sequence[float], right: Sequence[float]) -> float:
    return fmean(abs(a - b) for a, b in zip(left, right, strict=True))


def _conversation(example: Example) -> ChatExample | None:
    """Return the conversation whose last answer is compared; None for a bare prompt and its completion."""
    if isinstance(example, CompletionExample):
        return None
    return example.chats()[0] if isinstance(example, PreferenceExample) else example
