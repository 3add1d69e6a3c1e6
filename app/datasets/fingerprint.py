"""Fingerprints of examples, by which duplicates and near duplicates are found."""

from __future__ import annotations

import hashlib
import string
import unicodedata
from collections.abc import Iterator
from typing import Any

import msgspec

from app.datasets.types import ChatExample, CompletionExample, Example, PreferenceExample

_SIGNS = str.maketrans("", "", string.punctuation + string.whitespace)


def exact(example: Example) -> bytes:
    """Returns 16 bytes that are equal for examples with the same content, however their JSON is written."""
    return _digest(msgspec.json.encode(example))


def normalised(example: Example) -> bytes:
    """Returns 16 bytes that are equal for examples whose texts are the same once normalised."""
    return _digest("\n".join(map(normalise, _texts(msgspec.to_builtins(example)))).encode())


def answer(example: Example) -> bytes:
    """Returns 16 bytes that are equal for examples that end with the same answer once normalised."""
    match example:
        case ChatExample():
            last = example.messages[-1]
            calls = [(call.function.name, call.function.arguments) for call in last.tool_calls or ()]
            text = last.text or str(calls)  # ids differ from line to line
        case CompletionExample():
            text = example.completion
        case PreferenceExample():
            text = "\n".join(turn.text for turn in example.preferred_output)
    return _digest(normalise(text).encode())


def normalise(text: str) -> str:
    """Returns the text in compatibility form (NFKC), case folded, without spaces and ASCII punctuation.

    A text of nothing but punctuation keeps it.
    """
    folded = "".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.translate(_SIGNS) or folded


def _texts(value: Any) -> Iterator[str]:
    """Yields every string in the value, in order, without the names of fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():  # pyright: ignore[reportUnknownVariableType]
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:  # pyright: ignore[reportUnknownVariableType]
            yield from _texts(part)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
