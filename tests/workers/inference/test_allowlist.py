"""What of vLLM answers, and to whom."""

from __future__ import annotations

from typing import Any

import pytest

from workers.inference.allowlist import Allowlist

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
        ("/tokenize", [KEY], 299),
        ("/metrics", [KEY], 299),
        ("/tokenize", [], 404),
        ("/tokenize", [(b"authorization", b"Bearer wrong")], 404),
        ("/metrics", [(b"authorization", b"Bearer ")], 404),
        ("/v1/load_lora_adapter", [KEY], 404),
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
