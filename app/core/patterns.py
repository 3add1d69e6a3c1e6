"""Regular expressions that users write: bounded in size before they are compiled, and in time when they run.

The package `regex` unrolls what is repeated a fixed number of times, so that compiling
`(?:(?:a?){1000}){1000}` would take gigabytes.
"""

from __future__ import annotations

import functools
import re

import regex

MAX_PATTERN = 2000
"""Characters in the longest pattern."""
PATTERN_SECONDS = 0.1
"""The time that a pattern may take on one answer."""
MAX_EXPANDED_LENGTH = 10_000
"""The largest `expanded_length` of a pattern."""
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
"""Flags and comments with which blanks and brackets no longer mean what `_TOKEN` takes them for."""


class PatternError(ValueError):
    """A pattern is invalid or too large; the message is a predicate, as in "does not compile"."""


def compile_pattern(pattern: str, *, ignore_case: bool = False) -> regex.Pattern[str]:
    """Return the compiled pattern.

    Raises:
        PatternError: it does not compile, or compiling it would take too much memory.
    """
    if (size := expanded_length(pattern)) > MAX_EXPANDED_LENGTH:
        shown = f"{size:,}" if size < 10**12 else "far more than a billion"
        raise PatternError(
            f"repeats too much: written out it has {shown} characters, at most {MAX_EXPANDED_LENGTH:,} are "
            "compiled; use smaller counts, or * and +"
        )
    try:
        # The package's own cache would keep 500 patterns for as long as the process lives.
        return regex.compile(pattern, regex.IGNORECASE if ignore_case else 0, cache_pattern=False)
    except (regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise PatternError(f"does not compile: {error or type(error).__name__}") from None


@functools.lru_cache(maxsize=1024)
def cached_pattern(pattern: str, *, ignore_case: bool = False) -> regex.Pattern[str]:
    """Return the pattern as `compile_pattern` does; it is compiled once for many answers."""
    return compile_pattern(pattern, ignore_case=ignore_case)


def expanded_length(pattern: str) -> int:
    """Return the length of the pattern with every repeated part written out as often as its count says.

    Where flags or odd sets make the nesting unclear, the result is an upper bound.
    """
    sizes: list[list[int]] = [[]]
    groups, flat, unclear, after_group = 1, 0, _UNCLEAR.search(pattern) is not None, False
    for token in _TOKEN.finditer(pattern):
        text, level = token[0], sizes[-1]
        if token["counts"] is not None and (counts := _counts(token["counts"])):
            repeated = max(1, *counts)
            if level:
                level[-1] *= repeated
            # The upper bound: as if all groups were nested in each other.
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


def count_choices(pattern: str) -> int:
    """Return how many parts of the pattern may have several lengths; those in a repeated group count as often
    as it may be repeated.
    """
    open_ended = alternatives = 0
    repeated, before = 1, ""
    for token in _TOKEN.finditer(pattern):
        text = token[0]
        counts = _counts(token["counts"]) if token["counts"] is not None else []
        is_range = "," in text and bool(counts) and counts != counts[:1] * 2
        if text in ("*", "+") or is_range or (text == "?" and before != "("):
            open_ended += 1
        alternatives += text == "|"
        if counts and before == ")":
            repeated *= max(1, *counts)
        before = text
    return (open_ended + (alternatives if repeated > 1 else 0)) * repeated


def _counts(text: str) -> list[int]:
    """Return the numbers in `{m,n}`. Those in a comment count as well, which can only raise the bound."""
    joined = re.sub(r"\s|#[^\n]*\n", "", text)
    return [int(part) for part in joined.split(",") if part]


def _is_odd_set(text: str) -> bool:
    inside = text[1:].removeprefix("^")
    return inside.startswith("]") or "[" in inside or len(text) == 1
