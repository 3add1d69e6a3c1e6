"""When two examples are the same: exactly, or but for case, spaces, punctuation and characters' form."""

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
    """Equal for examples with the same content, however their JSON is written; 16 bytes."""
    return _digest(msgspec.json.encode(example))


def normalised(example: Example) -> bytes:
    """Equal for examples whose texts are the same once normalised; 16 bytes."""
    return _digest("\n".join(map(normalise, _texts(msgspec.to_builtins(example)))).encode())


def answer(example: Example) -> bytes:
    """Equal for examples that end with the same answer, normalised; 16 bytes."""
    match example:
        case ChatExample():
            last = example.messages[-1]
            text = last.text or str(msgspec.to_builtins(last.tool_calls))
        case CompletionExample():
            text = example.completion
        case PreferenceExample():
            text = "\n".join(turn.text for turn in example.preferred_output)
    return _digest(normalise(text).encode())


def normalise(text: str) -> str:
    """Unicode's compatibility form (NFKC), case folded, without ASCII's spaces and punctuation.

    So a report counts near duplicates, too. A text of nothing else is its own.
    """
    folded = "".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.translate(_SIGNS) or folded


def _texts(value: Any) -> Iterator[str]:
    """Every string in it, in order; names of fields are none."""
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
