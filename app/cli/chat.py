"""`toque chat`: asks a model from the terminal."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client import DEFAULT_BASE_URL, BaseUrl, connect, describe
from app.cli.output import AsJson, print_json_line, stderr
from app.core.control_characters import visible

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.chat import ChatCompletionMessageParam


def chat(
    model: Annotated[str, typer.Argument(show_default=False, help="Base model or fine-tuned model.")],
    message: Annotated[
        str | None,
        typer.Argument(
            show_default=False, help="The question; by default stdin, or a conversation on a terminal."
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(show_default=False, help="System message.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, show_default=False)] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, show_default=False, help="Tokens in the longest answer.")
    ] = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    as_json: AsJson = False,
) -> None:
    """Ask a model; the answer is printed as it comes.

    Example: toque chat smollm2-135m-instruct "What is the capital of France?"
    """
    messages: list[ChatCompletionMessageParam] = [{"role": "system", "content": system}] if system else []
    sampling = {"temperature": temperature, "max_tokens": max_tokens}
    options = {name: value for name, value in sampling.items() if value is not None}
    with connect(base_url) as client:
        if message is None and sys.stdin.isatty():
            _converse(client, model, messages, options, as_json)
        else:
            question = sys.stdin.read() if message is None else message
            _answer(client, model, [*messages, {"role": "user", "content": question}], options, as_json)


def _converse(
    client: OpenAI,
    model: str,
    messages: list[ChatCompletionMessageParam],
    options: dict[str, Any],
    as_json: bool,
) -> None:
    """Holds a conversation until Ctrl-D; a question whose answer fails is left out of it."""
    importlib.import_module("readline")  # gives input() its history

    from openai import APIError  # noqa: PLC0415 - see connect

    stderr.print("Ctrl-D ends the conversation.")
    while True:
        try:
            question = input("> ")
        except EOFError:
            stderr.print()
            return
        asked: list[ChatCompletionMessageParam] = [*messages, {"role": "user", "content": question}]
        try:
            answer = _answer(client, model, asked, options, as_json)
        except APIError as error:
            stderr.print(visible(f"Error: {describe(error)}"))
        else:
            messages = [*asked, {"role": "assistant", "content": answer}]


def _answer(
    client: OpenAI,
    model: str,
    messages: list[ChatCompletionMessageParam],
    options: dict[str, Any],
    as_json: bool,
) -> str:
    """Prints the answer, token by token, and returns it."""
    answer = ""
    completions = client.chat.completions
    with completions.create(model=model, messages=messages, stream=True, extra_body=options) as stream:
        for chunk in stream:
            text = (chunk.choices[0].delta.content or "") if chunk.choices else ""
            answer += text
            if as_json:
                print_json_line(chunk)
            else:
                sys.stdout.write(visible(text))
                sys.stdout.flush()
    if not as_json:
        sys.stdout.write("\n")
    return answer
