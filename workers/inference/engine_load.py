"""Reports what vLLM has to do: the requests that it computes or has waiting, and the adapters in its memory.

vLLM's own list of models keeps adapters that it has evicted, and its metrics take long to write.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from workers.inference.allowlist import App, Receive, Scope, Send

PATH = "/toque/load"


@dataclass(frozen=True, slots=True)
class Load:
    """What a vLLM has to do."""

    requests: int = 0
    """Requests that it computes or has waiting."""
    adapters: Sequence[str] = ()
    """Names of the adapters in its memory."""

    @classmethod
    def parse(cls, content: bytes) -> Load:
        """Reads what `EngineLoad` has answered.

        Raises:
            ValueError: it is something else.
        """
        try:
            said = json.loads(content)
            return cls(int(said["requests"]), [str(name) for name in said["adapters"]])
        except (KeyError, TypeError) as error:
            raise ValueError("vLLM does not say what it has to do") from error


class EngineLoad:
    """ASGI middleware for vLLM's --middleware option, which answers `GET /toque/load`."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers `GET /toque/load`, and passes every other request on."""
        if scope["type"] == "http" and scope["path"] == PATH:
            await self._report(scope, send)
        elif scope["type"] == "http" and scope["path"].startswith("/v1/"):
            self._requests += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._requests -= 1
        else:
            await self._app(scope, receive, send)

    async def _report(self, scope: Scope, send: Send) -> None:
        state = scope["app"].state
        resident: set[int] = await state.engine_client.list_loras()
        known = state.openai_serving_models.lora_requests.values()
        names = sorted(str(lora.lora_name) for lora in known if lora.lora_int_id in resident)
        body = json.dumps({"requests": self._requests, "adapters": names}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
