"""Forwards server-sent events as they arrive, and reads the token usage in them."""

from __future__ import annotations

from typing import Any, cast

import orjson

_END = b"\n\n"


class EventStream:
    """One stream of events. Engines are always asked for the usage; the event that carries it is hidden from
    a client that did not ask for it."""

    def __init__(self, *, hide_usage: bool) -> None:
        self._hide_usage = hide_usage
        self.rest = b""
        """Bytes of an event that is not complete yet."""
        self.usage: tuple[int, int] | None = None
        """Prompt and completion tokens, once known."""

    def forward(self, received: bytes) -> bytes:
        """Returns the bytes to send on to the client: every event that is complete by now."""
        if self.rest:
            received = self.rest + received
        if received.endswith(_END):
            self.rest = b""
        else:
            end = received.rfind(_END) + len(_END)
            if end < len(_END):
                self.rest = received
                return b""
            received, self.rest = received[:end], received[end:]
        if b'"usage"' not in received:
            return received
        events = received.split(_END)[:-1]
        return b"".join([event + _END for event in events if not self._is_hidden(event)])

    def _is_hidden(self, event: bytes) -> bool:
        """Records an event's usage; returns whether the event is nothing else and must be hidden."""
        if not event.startswith(b"data: {") or b'"usage"' not in event:
            return False
        try:
            chunk: Any = orjson.loads(event.removeprefix(b"data: "))
        except orjson.JSONDecodeError:
            return False
        usage = usage_of(chunk)
        self.usage = usage or self.usage
        return self._hide_usage and usage is not None and chunk.get("choices") == []


def usage_of(answer: Any) -> tuple[int, int] | None:
    """Returns the prompt and completion tokens that a completion or a chunk states, if it does."""
    usage: Any = cast("dict[str, Any]", answer).get("usage") if isinstance(answer, dict) else None
    if not isinstance(usage, dict):
        return None
    tokens = [cast("dict[str, Any]", usage).get(name) for name in ("prompt_tokens", "completion_tokens")]
    counted = [number if isinstance(number, int) else 0 for number in tokens]
    return counted[0], counted[1]
