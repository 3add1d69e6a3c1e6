"""Is what an engine serves what was trained? The same tokens in, nearly the same log-probabilities out."""

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
from app.datasets.lines import read_lines
from app.datasets.types import ChatExample, CompletionExample, Example, PreferenceExample
from workers.training.protocol import Sample

TOLERANCE = 0.15
"""Mean distance of a target's log-probabilities, in nats. bfloat16 and other kernels make about 0.03 of it
(measured on random adapters); a wrong template, scale or adapter makes several times as much."""
_SILENCE_SECONDS = 120.0


class ParityError(Exception):
    """The engine serves something else; the message says so, with the numbers."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"The served model is not the trained one: {problem}")


class NoAnswerError(Exception):
    """The engine gave no answer to compare."""


class Parity(msgspec.Struct, frozen=True):
    """How far the served model was from the trained one."""

    tokens: int
    """Targets that were compared."""
    distance: float
    """Mean absolute difference of their log-probabilities, served to trained, in nats."""
    base_distance: float
    """The same of the base alone: what kernels and rounding make."""
    effect: float
    """The same between the trained model and the base, both in the trainer."""
    tolerance: float = TOLERANCE

    def __str__(self) -> str:
        return f"Served as trained: {self.figures}"

    @property
    def figures(self) -> str:
        """The numbers, for people."""
        return (
            f"log-probabilities of {self.tokens} tokens differ by {self.distance:.4f} in the mean "
            f"(at most {self.tolerance}; the base's by {self.base_distance:.4f}; training changed "
            f"them by {self.effect:.4f})"
        )


def compare(engine: Engine, model: str, training_file: Path, samples: Sequence[Sample]) -> Parity:
    """Asks the engine for the samples, with the model and with its base.

    Raises:
        ParityError: other tokens, other log-probabilities, or no other than the base's.
        NoAnswerError: the engine cannot be asked.
    """
    try:
        return asyncio.run(_compare(engine, model, training_file, samples))
    except (RetryableError, ToqueError, OSError) as error:
        raise NoAnswerError(f"the engine cannot be asked: {str(error)[:200]}") from error


def find_engine(session: Session, settings: Settings, base_model: str) -> Engine:
    """One that serves the base now.

    Raises:
        NoAnswerError: there is none.
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
    """Those of the file, by number."""
    lines = enumerate(line for _, line in islice(read_lines(training_file), max(numbers) + 1))
    return {number: parse_line(line) for number, line in lines if number in numbers}


async def _check_tokens(connection: VllmConnection, base: str, example: Example, sample: Sample) -> None:
    """The prompt before a chat's last answer must be the tokens that were trained on."""
    chat = _conversation(example)
    if chat is None or not chat.messages[-1].is_target:
        return
    fields = [msgspec.to_builtins(message) for message in chat.messages[:-1]]
    prompt = [
        {name: value for name, value in message.items() if value is not None and name != "weight"}
        for message in fields
    ]
    body: dict[str, Any] = {"model": base, "messages": prompt, "add_generation_prompt": True}
    if chat.tools:
        body["tools"] = chat.tools
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


async def _logprobs(connection: VllmConnection, model: str, sample: Sample) -> list[float]:
    """Of the sample's targets, each after all the tokens before it."""
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
    """Return the conversation whose last answer is trained on; None for a bare prompt and its completion."""
    if isinstance(example, CompletionExample):
        return None
    return example.chats()[0] if isinstance(example, PreferenceExample) else example
