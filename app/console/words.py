"""Lists narrowed to what has all words of a text that somebody types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, or_
from sqlalchemy.orm import InstrumentedAttribute

_MOST_WORDS = 8
"""More make a query long, and no list shorter."""


def words_of(text: str) -> Sequence[str]:
    """Return the words of a text, in lower case."""
    return text.lower().split()[:_MOST_WORDS]


def have_words(words: Sequence[str], *columns: InstrumentedAttribute[Any]) -> list[ColumnElement[bool]]:
    """Return the conditions that each word is in one of the columns, whatever its case."""
    return [or_(*(column.icontains(word, autoescape=True) for column in columns)) for word in words]
