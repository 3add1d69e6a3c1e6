"""Server-sent events on their way through: the usage in them is read, all else passes as it came."""

from __future__ import annotations

from typing import Any, cast

import orjson

_END = b"\n\n"


class EventStream:
    """One stream of events. Engines are always asked for usage; a client that was not asked for it must
    not see the event that carries it."""

    def __init__(self, *, hide_usage: bool) -> None:
        self._hide_usage = hide_usage
        self.rest = b""
        """Of an event that has not ended."""
        self.usage: tuple[int, int] | None = None
        """Tokens in and out, once known."""

    def forward(self, received: bytes) -> bytes:
        """What may go on to the client: whole events, none of which waits for another."""
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
        """Whether it has nothing but usage that nobody asked for; notes the usage."""
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
    """Tokens in and out, as a completion or a chunk states them."""
    usage: Any = cast("dict[str, Any]", answer).get("usage") if isinstance(answer, dict) else None
    if not isinstance(usage, dict):
        return None
    tokens = [cast("dict[str, Any]", usage).get(name) for name in ("prompt_tokens", "completion_tokens")]
    counted = [number if isinstance(number, int) else 0 for number in tokens]
    return counted[0], counted[1]
