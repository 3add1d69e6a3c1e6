"""LiteLLM's proxy as a process in front of Toque, asked by the official client."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import NotFoundError, OpenAI

CONFIGURATION = """\
model_list:
  - model_name: "*"
    litellm_params:
      model: "openai/*"
      api_base: os.environ/OPENAI_BASE_URL
      api_key: os.environ/OPENAI_API_KEY
"""
TIMER: Any = {
    "type": "function",
    "function": {
        "name": "set_timer",
        "description": "Set a timer for a dish.",
        "parameters": {
            "type": "object",
            "properties": {"dish": {"type": "string"}, "minutes": {"type": "integer"}},
            "required": ["dish", "minutes"],
        },
    },
}
REQUEST: Any = [
    {"role": "system", "content": "You are the kitchen's assistant."},
    {"role": "user", "content": "Set a timer for the pie: 40 minutes."},
]
MODEL, BASE = os.environ["MODEL"], os.environ["BASE_MODEL"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    folder: Path = tmp_path_factory.mktemp("proxy")
    (folder / "config.yaml").write_text(CONFIGURATION)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key = f"sk-{secrets.token_hex(32)}"
    command = [Path(sys.executable).with_name("litellm"), "--config", folder / "config.yaml"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"],
            env=os.environ | {"LITELLM_MASTER_KEY": key},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}/health/liveliness", folder / "log")
        with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0) as client:
            yield client
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.URLError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(log.read_text())


def test_chat_is_passed_on_whole_and_streamed(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "What is the capital of France?"}]
    answer = client.chat.completions.create(model=BASE, messages=messages, temperature=0, max_tokens=16)
    assert "Paris" in (answer.choices[0].message.content or "")
    stream = client.chat.completions.create(
        model=BASE, messages=messages, temperature=0, max_tokens=16, stream=True
    )
    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def test_tools_are_passed_on_whole_and_streamed(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=REQUEST, tools=[TIMER], temperature=0)
    with client.chat.completions.stream(
        model=MODEL, messages=REQUEST, tools=[TIMER], temperature=0
    ) as stream:
        streamed = stream.get_final_completion()
    for answer in (whole, streamed):
        [call] = answer.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert call.function.name == "set_timer"
        assert json.loads(call.function.arguments) == {"dish": "pie", "minutes": 40}


def test_responses_are_passed_on(client: OpenAI) -> None:
    answer = client.responses.create(
        model=BASE, input="What is the capital of France?", temperature=0, max_output_tokens=16
    )
    assert "Paris" in answer.output_text


def test_completions_are_passed_on(client: OpenAI) -> None:
    answer = client.completions.create(
        model=BASE, prompt="The capital of France is", temperature=0, max_tokens=4
    )
    assert "Paris" in answer.choices[0].text


def test_a_model_that_is_not_there_raises_not_found(client: OpenAI) -> None:
    with pytest.raises(NotFoundError):
        client.chat.completions.create(model="none", messages=REQUEST)
