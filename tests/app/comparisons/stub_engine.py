"""A stand-in engine whose answers a test chooses, and the requests and files that comparisons are made of.

It is served on a Unix socket. Requests after the first `hold_after` wait until the test sets `go_on`.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

from openai import OpenAI
from openai.types import FileObject
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typing_extensions import override

from app.auth.models import Project
from app.core.database import Database
from app.models.adapters.models import Adapter
from tests.support.engine_stand_in import EngineStandIn
from tests.support.service import BASE_MODEL
from tests.support.waiting import wait_until

TUNED = f"ft:{BASE_MODEL}:default::1"


def question(number: int) -> str:
    return f"What is in pot number {number}?"


def reference(number: int) -> str:
    return f"Soup {number}."


def line(number: int, **more: Any) -> str:
    turns = [
        {"role": "user", "content": question(number)},
        {"role": "assistant", "content": reference(number)},
    ]
    return json.dumps({"messages": turns} | more) + "\n"


def lines(numbers: range, **more: Any) -> bytes:
    return "".join(line(number, **more) for number in numbers).encode()


def number_asked(body: dict[str, Any]) -> int:
    """Return the number of the question, which is the last turn."""
    return int(body["messages"][-1]["content"].rpartition(" ")[2].rstrip("?"))


class StubEngine(EngineStandIn):
    """Answers with what `respond` returns: a text, or a whole response."""

    def __init__(self, respond: Callable[[dict[str, Any]], str | Response]) -> None:
        super().__init__()
        self.respond = respond
        self.answered = 0
        self.in_flight = self.most_in_flight = 0
        self.go_on = threading.Event()
        self.go_on.set()
        self.hold_after = 10**9
        """Requests that are answered before the others wait for `go_on`."""

    @override
    async def _answer(self, request: Request) -> Response:
        assert request.headers["authorization"] == f"Bearer {self.api_key}"
        body = await request.json()
        self.bodies.append(body)
        place = len(self.bodies)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0)
            if place > self.hold_after:
                while not self.go_on.is_set() and not await request.is_disconnected():
                    await asyncio.to_thread(self.go_on.wait, 0.01)
            answer = self.respond(body)
        finally:
            self.in_flight -= 1
        if isinstance(answer, Response):
            return answer
        self.answered += 1
        choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10 * len(body["messages"]), "completion_tokens": 3, "total_tokens": 13}
        return JSONResponse(self._envelope(body, "chat.completion", [choice]) | {"usage": usage})


def tuned_model_is_right(body: dict[str, Any]) -> str:
    """Answer as if the fine-tuned model knew everything; a prompt helps with one question in four."""
    number = number_asked(body)
    has_help = len(body["messages"]) > 1
    return reference(number) if body["model"] == TUNED or (has_help and number % 4 == 0) else "Stew."


def refusal() -> Response:
    error = {"message": "This model's maximum context length is 2048 tokens.", "code": 400}
    return JSONResponse({"error": error}, 400)


def upload(client: OpenAI, content: bytes, purpose: Any = "evals") -> str:
    file: FileObject = client.files.create(file=("questions.jsonl", content), purpose=purpose)
    return file.id


def add_tuned(database: Database, name: str = TUNED, **columns: Any) -> str:
    with database.writer() as session:
        project = session.query(Project).filter_by(name="default").one()
        row = {
            "name": name,
            "project_id": project.id,
            "base_model": BASE_MODEL,
            "storage_key": name,
        } | columns
        session.add(Adapter(**row))
    return name


def create(client: OpenAI, **request: Any) -> dict[str, Any]:
    """Through the official client, which respond nothing of comparisons."""
    return client.post(
        "/comparisons", cast_to=dict[str, Any], body={"model": BASE_MODEL, "grader": "exact_match"} | request
    )


def get(client: OpenAI, comparison_id: str, path: str = "", **query: Any) -> dict[str, Any]:
    return client.get(
        f"/comparisons/{comparison_id}{path}", cast_to=dict[str, Any], options={"params": query}
    )


def ended(client: OpenAI, comparison_id: str, seconds: float = 120) -> dict[str, Any]:
    """The comparison, once it has ended."""

    def look() -> dict[str, Any] | None:
        seen = get(client, comparison_id)
        return seen if seen["status"] in ("succeeded", "failed", "cancelled") else None

    return wait_until(look, "the comparison ends", seconds=seconds)
