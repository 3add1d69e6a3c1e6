"""A stand-in engine that says what a test wants, token by token, with their probabilities."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import AsyncIterator
from typing import Any

from typing_extensions import override

from tests.support.engine_stand_in import EngineStandIn


class TalkingEngine(EngineStandIn):
    """Answers each model's questions with tokens of its own, and stops after the first until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens_of: dict[str, list[tuple[str, float]]] = {}
        """The tokens that a model says, each with its probability."""
        self.breaks = set[str]()
        """The models whose streams break after the first token."""
        self.go_on = threading.Event()
        self.go_on.set()

    @override
    async def _chunks(self, body: dict[str, Any]) -> AsyncIterator[str]:
        said = self.tokens_of.get(body["model"], [("Leek", 0.9), (".", 0.8)])
        try:
            for place, (token, probability) in enumerate(said):
                if place == 1:
                    while not self.go_on.is_set():
                        await asyncio.to_thread(self.go_on.wait, 0.01)
                if place == 1 and body["model"] in self.breaks:
                    raise ConnectionError("the engine dies")
                yield self._event(self._envelope(body, ".chunk", [_choice(body, token, probability)]))
            end: dict[str, Any] = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
            yield self._event(self._envelope(body, ".chunk", [end]))
            usage = {"prompt_tokens": 5, "completion_tokens": len(said), "total_tokens": 5 + len(said)}
            yield self._event(self._envelope(body, ".chunk", []) | {"usage": usage})
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.disconnected.set()
            raise


def _choice(body: dict[str, Any], token: str, probability: float) -> dict[str, Any]:
    def logprob(text: str, share: float) -> dict[str, Any]:
        return {"token": text, "logprob": math.log(share), "bytes": list(text.encode())}

    others = [logprob(token, probability), logprob(" other", (1 - probability) / 2)]
    content = [logprob(token, probability) | {"top_logprobs": others}]
    return {
        "index": 0,
        "delta": {"content": token},
        "logprobs": {"content": content} if body.get("logprobs") else None,
        "finish_reason": None,
    }


def said(engine: TalkingEngine, place: int) -> list[tuple[str, str]]:
    """The conversation of a request."""
    messages = json.loads(json.dumps(engine.bodies[place]["messages"]))
    return [(turn["role"], turn["content"]) for turn in messages]
