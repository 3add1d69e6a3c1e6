"""Text for JUnit reports."""

from __future__ import annotations

import re

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, not even escaped: https://www.w3.org/TR/xml/#charsets."""


def xml_text(text: str) -> str:
    """Returns the text with every character replaced that XML cannot hold."""
    return _NOT_IN_XML.sub("\ufffd", text)
