"""Slows down callers who are refused again and again, such as scripts that ignore errors in a loop.

A refusal is cheap, but thousands a second take the cores that others' answers are computed on. What a caller
is allowed is never delayed: only refusals wait, and only in excess of a rate. The rate is kept by the generic
cell rate algorithm (ITU-T I.371), which needs one number for each caller.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from ipaddress import IPv6Address, ip_address
from typing import cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.auth.caller import Caller
from app.core.scope import CALLER, HELD_BACK

_AT_ONCE = 50
"""Refusals that a caller gets without waiting, after a while without any."""
_MOST_SECONDS = 5.0
_MOST_CALLERS = 10_000
"""The callers that are remembered; beyond that, those who were refused longest ago are forgotten."""
_NETWORK_BITS = 64
"""Of an IPv6 address, those that its owner cannot choose (RFC 6177)."""


class RefusalPace:
    """Delays refusals (4xx) beyond a rate for each caller, which is a key, or without one an address.

    It stands in front of everything: while a refusal waits, nothing is left of its request but the answer,
    and its connection gives way to a new one if there are too many.
    """

    def __init__(self, app: ASGIApp, *, per_second: float) -> None:
        self._app = app
        self._seconds = 1 / per_second
        self._due: OrderedDict[str, float] = OrderedDict()
        """By caller, who was refused last at the end: when the next refusal would be due if they were spread
        evenly (monotonic seconds)."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        refusal: list[Message] = []

        async def send_or_keep(message: Message) -> None:
            if refusal or (message["type"] == "http.response.start" and 400 <= message["status"] < 500):
                refusal.append(message)
            else:
                await send(message)

        await self._app(scope, receive, send_or_keep)
        if refusal and (delay := self._delay(_name(scope))):
            scope[HELD_BACK] = True
            await asyncio.sleep(delay)
        for message in refusal:
            await send(message)

    def _delay(self, caller: str) -> float:
        """Return how many seconds a refusal of this caller waits."""
        now = time.monotonic()
        without_waiting = _AT_ONCE * self._seconds
        due = max(self._due.get(caller, 0.0), now - without_waiting) + self._seconds
        due = self._due[caller] = min(due, now + _MOST_SECONDS)
        self._due.move_to_end(caller)
        if len(self._due) > _MOST_CALLERS:
            self._due.popitem(last=False)
        return max(0.0, due - now)


def _name(scope: Scope) -> str:
    """Return the id of the request's key or, if it has none, its address; of IPv6 only the network counts."""
    caller = cast("Caller | None", scope.get(CALLER))
    if caller:
        return caller.key_id
    host = str((scope.get("client") or ("", 0))[0])
    try:
        address = ip_address(host)
    except ValueError:  # a Unix socket has none
        return host
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return str(int(address) >> (128 - _NETWORK_BITS))
    return host
