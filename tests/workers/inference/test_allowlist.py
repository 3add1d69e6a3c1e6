"""What of vLLM answers, and to whom."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from workers.inference.allowlist import Allowlist
from workers.inference.engine_load import EngineLoad

KEY = (b"authorization", b"Bearer secret")


async def status(path: str, *headers: tuple[bytes, bytes]) -> int:
    """Of a request for the path; 299 where it reaches vLLM."""
    sent: list[Any] = []

    async def vllm(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 299, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    await Allowlist(vllm)({"type": "http", "path": path, "headers": list(headers)}, None, send)
    return sent[0]["status"]


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        ("/health", [], 299),
        ("/v1/chat/completions", [], 299),  # vLLM asks for the key itself
        ("/v1/responses", [], 299),
        ("/tokenize", [KEY], 299),
        ("/metrics", [KEY], 299),
        ("/sleep", [KEY], 299),
        ("/wake_up", [KEY], 299),
        ("/toque/load", [KEY], 299),
        ("/sleep", [], 404),
        ("/wake_up", [], 404),
        ("/toque/load", [], 404),
        ("/collective_rpc", [KEY], 404),  # open in vLLM's development mode, as are many others
        ("/reset_prefix_cache", [KEY], 404),
        ("/tokenize", [], 404),
        ("/tokenize", [(b"authorization", b"Bearer wrong")], 404),
        ("/metrics", [(b"authorization", b"Bearer ")], 404),
        ("/v1/load_lora_adapter", [KEY], 404),
        ("/v1/responses/resp_1", [KEY], 404),  # vLLM's own store, which has no owners
        ("/v1/responses/resp_1/cancel", [KEY], 404),
        ("/docs", [KEY], 404),
        ("/tokenize/", [KEY], 404),
    ],
)
async def test_routes(
    path: str, headers: list[tuple[bytes, bytes]], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert await status(path, *headers) == expected


async def test_without_a_key_nobody_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert await status("/tokenize", (b"authorization", b"Bearer ")) == 404


async def test_what_vllm_has_to_do() -> None:
    def lora(name: str, number: int) -> SimpleNamespace:
        return SimpleNamespace(lora_name=name, lora_int_id=number)

    async def list_loras() -> set[int]:
        return {1, 3}

    known = {name: lora(name, number) for name, number in (("ft:c", 3), ("ft:dropped", 2), ("ft:a", 1))}
    models = SimpleNamespace(lora_requests=known)
    state = SimpleNamespace(
        engine_client=SimpleNamespace(list_loras=list_loras), openai_serving_models=models
    )

    async def answer(*_: Any) -> None:
        if states.append(await report()) is None and len(states) > 1:
            raise ConnectionError("the client has left")

    reporter = EngineLoad(answer)
    states: list[Any] = []

    async def report() -> Any:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "path": "/toque/load", "app": SimpleNamespace(state=state)}
        await reporter(scope, None, send)  # pyright: ignore[reportArgumentType]
        assert sent[0]["status"] == 200
        return json.loads(sent[1]["body"])

    request = {"type": "http", "path": "/v1/chat/completions"}
    await reporter(request, None, None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConnectionError):
        await reporter(request, None, None)  # pyright: ignore[reportArgumentType]
    adapters = ["ft:a", "ft:c"]
    assert [*states, await report()] == [
        {"requests": 1, "adapters": adapters},
        {"requests": 1, "adapters": adapters},
        {"requests": 0, "adapters": adapters},
    ]
