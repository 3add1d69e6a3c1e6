"""Instructor: its default mode, which calls a tool, and the others for OpenAI's API."""

from __future__ import annotations

import asyncio
import os
from typing import Literal

import instructor
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

MODEL = os.environ["MODEL"]
ASKED = "A large pie takes 40 minutes."


class Pie(BaseModel):
    """What is known of a pie."""

    minutes: int = Field(ge=1, le=120)
    size: Literal["small", "large"]


def test_the_default_mode_returns_the_model() -> None:
    client = instructor.from_openai(OpenAI())
    pie = client.chat.completions.create(
        model=MODEL,
        response_model=Pie,
        messages=[{"role": "user", "content": ASKED}],
        temperature=0,
        max_tokens=64,
    )
    assert isinstance(pie, Pie)


def test_from_provider_returns_the_model() -> None:
    client = instructor.from_provider(f"openai/{MODEL}")
    pie = client.create(
        response_model=Pie, messages=[{"role": "user", "content": ASKED}], temperature=0, max_tokens=64
    )
    assert isinstance(pie, Pie)


def test_the_default_mode_streams_partial_models() -> None:
    client = instructor.from_openai(OpenAI())
    partial = list(
        client.chat.completions.create_partial(
            model=MODEL,
            response_model=Pie,
            messages=[{"role": "user", "content": ASKED}],
            temperature=0,
            max_tokens=64,
        )
    )
    assert partial[-1].size in ("small", "large")


def test_the_default_mode_with_the_asynchronous_client() -> None:
    async def ask() -> Pie:
        async with AsyncOpenAI() as client:
            return await instructor.from_openai(client).chat.completions.create(
                model=MODEL,
                response_model=Pie,
                messages=[{"role": "user", "content": ASKED}],
                temperature=0,
                max_tokens=64,
            )

    assert isinstance(asyncio.run(ask()), Pie)


@pytest.mark.parametrize(
    "mode", [instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA, instructor.Mode.JSON]
)
def test_other_modes(mode: instructor.Mode) -> None:
    client = instructor.from_openai(OpenAI(), mode=mode)
    pie = client.chat.completions.create(
        model=MODEL,
        response_model=Pie,
        messages=[{"role": "user", "content": ASKED}],
        temperature=0,
        max_tokens=100,
    )
    assert isinstance(pie, Pie)


def test_responses_mode() -> None:
    client = instructor.from_openai(OpenAI(), mode=instructor.Mode.RESPONSES_TOOLS)
    pie = client.responses.create(
        model=MODEL, response_model=Pie, input=ASKED, temperature=0, max_output_tokens=64
    )
    assert isinstance(pie, Pie)
