"""Training files, as short as they may be."""

from __future__ import annotations

import json
from typing import Any


def chat_line(question: str = "What is the soup?", answer: str = "Leek.", **message: Any) -> str:
    """A training line."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer} | message]
    return json.dumps({"messages": turns})


def training_bytes(examples: int = 12) -> bytes:
    """A valid training file."""
    return "".join(
        chat_line(f"What is soup number {n}?", f"Soup {n}.") + "\n" for n in range(examples)
    ).encode()
