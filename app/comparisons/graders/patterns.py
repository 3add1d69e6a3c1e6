"""Users' patterns: compiled only where that is cheap, as `regex` writes out what is repeated a fixed number
of times: `(?:(?:a?){1000}){1000}` is a million pieces.
"""

from __future__ import annotations

import re

import regex

MAX_PATTERN = 2000
MAX_EXPANDED_LENGTH = 10_000
"""Characters of a pattern with each part written as often as it may be repeated."""
_TOKEN = re.compile(
    r"""
    \\.                                     # an escaped character
    | \[\^?\]?(?:\\.|[^\]\\])*\]            # a set of characters
    | \{(?P<counts>(?:[\d,\s]|\#[^\n]*\n)*)\}
    | .
    """,
    re.VERBOSE | re.DOTALL,
)
_UNCLEAR = re.compile(r"\(\?[\w-]*(?:x|V1)|\(\?\#")
"""What makes blanks and comments of brackets, or nests sets."""


class PatternError(ValueError):
    """A pattern that is none, or too large; the message goes on from its name."""


def compile_pattern(pattern: str, *, ignore_case: bool = False) -> regex.Pattern[str]:
    """The pattern, ready to be searched for.

    Raises:
        PatternError: it does not compile, or would take too much memory to.
    """
    if (size := expanded_length(pattern)) > MAX_EXPANDED_LENGTH:
        shown = f"{size:,}" if size < 10**12 else "far more than a billion"
        raise PatternError(
            f"repeats too much: written out it has {shown} characters, at most {MAX_EXPANDED_LENGTH:,} are "
            "compiled; use smaller counts, or * and +"
        )
    try:
        # Without the package's own cache: that keeps 500 for as long as the process lives.
        return regex.compile(pattern, regex.IGNORECASE if ignore_case else 0, cache_pattern=False)
    except (regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise PatternError(f"does not compile: {error or type(error).__name__}") from None


def expanded_length(pattern: str) -> int:
    """The pattern's length, each part written as often as its count says; more where that is unclear."""
    sizes: list[list[int]] = [[]]
    groups, flat, unclear, after_group = 1, 0, _UNCLEAR.search(pattern) is not None, False
    for token in _TOKEN.finditer(pattern):
        text, level = token[0], sizes[-1]
        if token["counts"] is not None and (counts := _counts(token["counts"])):
            repeated = max(1, *counts)
            if level:
                level[-1] *= repeated
            # Were all groups nested, and every count another's.
            groups, flat = (groups * repeated, flat) if after_group else (groups, flat + repeated)
            continue
        if not text.isspace():
            after_group = text == ")"
        flat += len(text)
        if text == "(":
            sizes.append([])
        elif text == ")" and len(sizes) > 1:
            sizes[-2].append(sum(sizes.pop()) + 1)
        else:
            unclear = unclear or text == ")" or (text[0] == "[" and _is_odd_set(text))
            level.append(1)
    if unclear or len(sizes) > 1:
        return groups * flat
    return sum(sizes[0])


def _counts(text: str) -> list[int]:
    """Those in `{m,n}`; a comment in it counts as well, which can only make it more."""
    joined = re.sub(r"\s|#[^\n]*\n", "", text)
    return [int(part) for part in joined.split(",") if part]


def _is_odd_set(text: str) -> bool:
    inside = text[1:].removeprefix("^")
    return inside.startswith("]") or "[" in inside or len(text) == 1
