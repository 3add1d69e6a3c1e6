"""What goes wrong while a base model is prepared."""

from __future__ import annotations


class BaseModelError(Exception):
    """The model cannot be prepared or added; the message says why and what to do."""


def first_line(error: BaseException) -> str:
    """Return the first line of the error's message, or the name of its class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_disk_full(error: BaseException) -> bool:
    """Return whether the error means that the disk is full."""
    # safetensors wraps the system's error in a class of its own, so only the text tells.
    return "no space left on device" in str(error).lower()
