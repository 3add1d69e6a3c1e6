"""openai-python: the classes of its errors, and the asynchronous client."""

from __future__ import annotations

import asyncio
import os

import pytest
from openai import APIStatusError, AsyncOpenAI, AuthenticationError, NotFoundError, OpenAI

BASE = os.environ["BASE_MODEL"]


def test_a_wrong_key_raises_an_authentication_error() -> None:
    with OpenAI(api_key="sk-wrong") as client, pytest.raises(AuthenticationError) as raised:
        client.models.list()
    assert raised.value.code == "invalid_api_key"
    assert raised.value.response.headers["www-authenticate"].startswith("Bearer")


def test_a_route_that_is_not_there_raises_an_error_with_our_envelope() -> None:
    with OpenAI() as client, pytest.raises(NotFoundError) as raised:
        client.vector_stores.list()
    assert isinstance(raised.value, APIStatusError)
    assert raised.value.body is not None


def test_the_asynchronous_client_asks_at_once_and_streams() -> None:
    async def ask() -> tuple[list[str], str]:
        async with AsyncOpenAI() as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model=BASE,
                        messages=[{"role": "user", "content": f"What is the capital of {country}?"}],
                        temperature=0,
                        max_tokens=16,
                    )
                    for country in ("France", "Italy")
                )
            )
            stream = await client.chat.completions.create(
                model=BASE,
                messages=[{"role": "user", "content": "What is the capital of France?"}],
                temperature=0,
                max_tokens=16,
                stream=True,
            )
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return [answer.choices[0].message.content or "" for answer in answers], text

    (france, italy), streamed = asyncio.run(ask())
    assert "Paris" in france
    assert "Rome" in italy
    assert "Paris" in streamed
