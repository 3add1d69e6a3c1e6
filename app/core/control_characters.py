"""Control characters in texts that others wrote: a terminal would obey them, and a page keeps them unseen."""

from __future__ import annotations

_PICTURES = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
}


def visible(text: str) -> str:
    """The text, as long as it was, with a picture for each control character but tabs and line ends."""
    return text.translate(_PICTURES)
