"""Chat templates that a catalogue entry may name, for base models whose own template leaves tools out."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent
NAMES = tuple(sorted(file.stem for file in _FOLDER.glob("*.jinja")))
"""The templates' names, such as `smollm2`."""


@cache
def read_chat_template(name: str) -> str:
    """Return the Jinja source of one of `NAMES`."""
    return (_FOLDER / f"{name}.jinja").read_text("utf-8")
