"""Counts letters by Unicode script (Latin, Cyrillic, Han, …), a rough sign of a dataset's languages."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache

_NOT_LETTERS = bytes(byte for byte in range(256) if not (chr(byte).isascii() and chr(byte).isalpha()))
_NAMES = {"CJK": "Han", "LATIN": "Latin"}


def count_letters(text: str, encoded: bytes, counts: Counter[str], weight: int = 1) -> None:
    """Adds `weight` to a script's count for each of its letters; `encoded` is the same text in UTF-8."""
    if text.isascii():
        counts["Latin"] += weight * len(encoded.translate(None, _NOT_LETTERS))
        return
    for character, count in Counter(text).items():
        if (script := _script(character)) is not None:
            counts[script] += weight * count


@lru_cache(maxsize=2**16)
def _script(character: str) -> str | None:
    """Returns a letter's script, which is the first word of its Unicode name; None for other characters."""
    if unicodedata.category(character)[0] not in "LM":
        return None
    word = unicodedata.name(character, "").partition(" ")[0].partition("-")[0]
    if word in ("COMBINING", "MODIFIER", "VARIATION", "ZERO", ""):
        return None
    return _NAMES.get(word, word.capitalize())
