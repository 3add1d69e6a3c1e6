"""The engine is killed (-9) under load, with eight adapters in use, and comes back.

`toque serve` runs; clients ask the base model and every adapter through the gateway, half of them streaming.
The adapters are strong, so that whose answer it is can be read from the log-probabilities of its first token:
an answer is wrong if any other model's reference is nearer to them than its own, or if it is shorter than it
says. A failure is bad unless it is a 503 with `retry-after`, or a stream that ends in an error event.

The engine is up again when the new vLLM's `/health` says so; from there the first correct answer is timed.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from tokenizers import Tokenizer

from app.demo.service import ServiceProcess, running_service
from benchmarks.serving.deployment import SLOTS, Deployment, create_deployment
from benchmarks.serving.measurements import progress
from benchmarks.serving.reference import Question, reference_logprobs

ANSWER_TOKENS = 16
STRENGTH = 12.0
PROMPTS = (
    "The ice cream maker stopped in the middle of a batch. First of all,",
    "A pot of soup wants salt, and so does the cook. My grandmother used to say that",
    "Dear customer, the warranty of your mixer",
    "Whoever cleans the bowl with hot water",
)
_CLIENTS_A_MODEL = 2
_LOAD_SECONDS = 10.0
_AFTERWARDS_SECONDS = 10.0
_PATIENCE_SECONDS = 180.0
_RETRY_SECONDS = 0.25
_API_SERVER = "vllm.entrypoints.openai.api_server"


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer, with the log-probabilities of the likeliest first tokens."""

    model: str
    prompt: int
    asked: float
    came: float
    first_token: dict[str, float]
    tokens: int


@dataclass(slots=True)
class Diary:
    """The answers and errors that all clients saw."""

    answers: list[Answer] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    bad_failures: list[str] = field(default_factory=list)


def measure(folder: Path) -> dict[str, Any]:
    deployment = create_deployment(folder)
    adapters = deployment.publish_adapters(SLOTS, STRENGTH)
    models = [deployment.base.name, *adapters]
    with running_service(deployment.settings, folder) as service:
        service.await_ready(lambda _: None)
        progress("restart: the service is ready")
        diary, killed, up = asyncio.run(_kill_under_load(service, models))
    progress(f"restart: {len(diary.answers)} answers, {dict(diary.failures)}")
    judge = Attribution(deployment, models)
    right = [answer for answer in diary.answers if judge.is_right(answer)]
    first: dict[str, float] = {}
    for answer in sorted(right, key=lambda answer: answer.came):
        if answer.came > killed + 1:
            first.setdefault(answer.model, max(0.0, answer.came - up))
    for line in diary.bad_failures[:10]:
        progress(f"restart: a bad failure: {line}")
    return {
        "restart_seconds": round(min(first.values()), 2) if first else None,
        "restart_wrong": len(diary.answers) - len(right),
        "restart_bad_failures": len(diary.bad_failures),
        "restart": {
            "until_all_models_answer_seconds": round(max(first.values()), 2) if first else None,
            "models_back": len(first),
            "until_up_seconds": round(up - killed, 1),
            "answers": len(diary.answers),
            "failures": dict(diary.failures),
            "nearest_two_references": round(judge.margin, 3),
        },
    }


async def _kill_under_load(service: ServiceProcess, models: list[str]) -> tuple[Diary, float, float]:
    """Kills the engine under load; returns what the clients saw, and when it died and was up again."""
    diary = Diary()
    headers = {"authorization": f"Bearer {service.api_key}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(service.address, headers=headers, connector=connector) as session:
        clients = [
            asyncio.create_task(_ask_on(session, model, number % 2 == 0, diary))
            for model in models
            for number in range(_CLIENTS_A_MODEL)
        ]
        await _until(lambda: {answer.model for answer in diary.answers} == set(models))
        await asyncio.sleep(_LOAD_SECONDS)
        old = _api_server(service)
        assert old is not None
        old.kill()
        killed = time.monotonic()
        await _until(lambda: _api_server(service) not in (None, old))
        new = _api_server(service)
        assert new is not None
        up = await _healthy_at(new)
        progress(f"restart: up again after {up - killed:.1f} s")

        def back() -> bool:
            return {answer.model for answer in diary.answers if answer.asked > killed} == set(models)

        await _until(back)
        await asyncio.sleep(_AFTERWARDS_SECONDS)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    return diary, killed, up


async def _ask_on(session: aiohttp.ClientSession, model: str, streamed: bool, diary: Diary) -> None:
    """Sends one request after another."""
    number = 0
    while True:
        prompt = number % len(PROMPTS)
        number += 1
        body = {
            "model": model,
            "prompt": PROMPTS[prompt],
            "max_tokens": ANSWER_TOKENS,
            "min_tokens": ANSWER_TOKENS,
            "temperature": 0,
            "logprobs": 5,
            "stream": streamed,
        }
        asked = time.monotonic()
        try:
            async with session.post("/v1/completions", json=body) as response:
                if response.status == 200:
                    events = await (_events if streamed else _whole)(response)
                    tops = [
                        top for event in events for top in event["choices"][0]["logprobs"]["top_logprobs"]
                    ]
                    answer = Answer(model, prompt, asked, time.monotonic(), tops[0], len(tops))
                    diary.answers.append(answer)
                    continue
                _note_refusal(response, await response.text(), diary)
        except StreamFailedError as error:
            diary.failures[str(error)] += 1
        except (aiohttp.ClientError, ValueError, LookupError) as error:
            diary.failures["bad"] += 1
            diary.bad_failures.append(f"{'stream' if streamed else 'whole'}: {error!r}")
        await asyncio.sleep(_RETRY_SECONDS)


class StreamFailedError(Exception):
    """The stream ended with an error event."""


async def _whole(response: aiohttp.ClientResponse) -> list[Any]:
    return [await response.json()]


async def _events(response: aiohttp.ClientResponse) -> list[Any]:
    events: list[Any] = []
    async for line in response.content:
        data = line.removeprefix(b"data: ").strip()
        if data == b"[DONE]":
            return events
        if data:
            event = json.loads(data)
            if "error" in event:
                raise StreamFailedError(f"error event {event['error'].get('code')}")
            if event["choices"] and event["choices"][0]["logprobs"]:
                events.append(event)
    raise ValueError("the stream broke off without a word")


def _note_refusal(response: aiohttp.ClientResponse, text: str, diary: Diary) -> None:
    if response.status == 503 and "retry-after" in response.headers:
        diary.failures["503 with retry-after"] += 1
    else:
        diary.failures["bad"] += 1
        diary.bad_failures.append(f"{response.status}: {text[:200]}")


class Attribution:
    """Tells which model gave an answer, by fp32 references."""

    def __init__(self, deployment: Deployment, models: list[str]) -> None:
        base_dir = deployment.settings.base_model_dir(deployment.base)
        tokenizer = Tokenizer.from_file(str(base_dir / "tokenizer.json"))
        asked = [(model, prompt) for model in models for prompt in range(len(PROMPTS))]
        folders = {model: str(deployment.adapter_folder(model)) for model in models[1:]}
        texts = [
            (folders.get(model), tokenizer.encode(PROMPTS[prompt], add_special_tokens=False).ids)
            for model, prompt in asked
        ]
        references = reference_logprobs(Question(str(base_dir), texts, next_tokens=True))
        self._references = dict(zip(asked, references, strict=True))
        self._models = models
        spelled = [tokenizer.decode([id_], skip_special_tokens=False) for id_ in range(len(references[0]))]
        often = Counter(spelled)
        # A spelling that two tokens share (part of a letter, for one) says nothing.
        self._ids = {text: id_ for id_, text in enumerate(spelled) if often[text] == 1}

    def is_right(self, answer: Answer) -> bool:
        known = {self._ids[text]: value for text, value in answer.first_token.items() if text in self._ids}
        if not known or answer.tokens != ANSWER_TOKENS:
            return False
        distances = {
            model: sum(
                abs(value - self._references[model, answer.prompt][id_]) for id_, value in known.items()
            )
            for model in self._models
        }
        return min(distances, key=distances.__getitem__) == answer.model

    @property
    def margin(self) -> float:
        """Returns the mean distance of a model's likeliest tokens from the most similar other model's."""
        nearest = float("inf")
        for (model, prompt), reference in self._references.items():
            top = sorted(range(len(reference)), key=reference.__getitem__)[-5:]
            for other in self._models:
                if other != model:
                    others = self._references[other, prompt]
                    distance = sum(abs(reference[id_] - others[id_]) for id_ in top) / len(top)
                    nearest = min(nearest, distance)
        return nearest


def _api_server(service: ServiceProcess) -> psutil.Process | None:
    """Returns the vLLM process that the service runs now."""
    for process in psutil.Process(service.process.pid).children(recursive=True):
        with suppress(psutil.Error):
            if _API_SERVER in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                return process
    return None


async def _healthy_at(api_server: psutil.Process) -> float:
    """Returns the time at which it first reported that it is healthy."""
    socket = next(word for word in api_server.cmdline() if word.startswith("--uds=")).removeprefix("--uds=")
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with suppress(aiohttp.ClientError, OSError):
            async with (
                aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket)) as session,
                session.get("http://engine/health") as answer,
            ):
                if answer.status == 200:
                    return time.monotonic()
        await asyncio.sleep(0.05)
    raise RuntimeError("the engine did not come back")


async def _until(condition: Any) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing happened for {_PATIENCE_SECONDS:.0f} s")
        await asyncio.sleep(0.05)
