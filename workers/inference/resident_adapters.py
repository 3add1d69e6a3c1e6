"""Reports the adapters in vLLM's memory, because its own list of models keeps those that it has evicted."""

from __future__ import annotations

import json

from workers.inference.allowlist import App, Receive, Scope, Send

PATH = "/toque/adapters"


class ResidentAdapters:
    """ASGI middleware for vLLM's --middleware option, which answers `GET /toque/adapters`."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers `GET /toque/adapters`, and passes every other request on."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self._app(scope, receive, send)
            return
        state = scope["app"].state
        resident: set[int] = await state.engine_client.list_loras()
        known = state.openai_serving_models.lora_requests.values()
        names = sorted(str(lora.lora_name) for lora in known if lora.lora_int_id in resident)
        body = json.dumps({"adapters": names}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
