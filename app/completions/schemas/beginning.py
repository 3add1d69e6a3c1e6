"""The beginning of a prompt, which engines are chosen by: those that computed it before have it cached."""

from __future__ import annotations

from collections.abc import Iterable

CHARACTERS = 1024
"""Long enough to tell conversations apart, unless they share long instructions, which are worth a cache."""


def beginning_of(turns: Iterable[tuple[str, str]]) -> str:
    """Returns the first characters of a conversation, whose turns are roles and texts.

    It ends with the first turn of the user, so that it stays the same while the conversation goes on.
    """
    read = ""
    for role, text in turns:
        read += f"{role}:{text[:CHARACTERS]}\n"
        if role == "user" or len(read) >= CHARACTERS:
            break
    return read[:CHARACTERS]
