"""Text for JUnit reports."""

from __future__ import annotations

import re

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""XML 1.0 has no way to write these, not even escaped: https://www.w3.org/TR/xml/#charsets."""


def xml_text(text: str) -> str:
    """The text with a replacement for every character that XML cannot hold."""
    return _NOT_IN_XML.sub("\ufffd", text)
