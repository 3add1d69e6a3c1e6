"""Makes control characters in untrusted text visible: a terminal would obey them, and a page hides them."""

from __future__ import annotations

_PICTURES = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
}


def visible(text: str) -> str:
    """Return the text with a visible character in place of every control character but tabs and line ends."""
    return text.translate(_PICTURES)
