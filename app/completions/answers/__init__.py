"""Answers: what an engine says, made into exactly the objects of OpenAI's specification.

Each kind declares its objects as structs. What an engine says beyond them is dropped, what the specification
requires is written even if it is null, and whatever else is null is left out.
"""

from __future__ import annotations

from app.completions.answers.answer import Answer
from app.completions.answers.chat import ChatAnswer
from app.completions.answers.completion import CompletionAnswer
from app.completions.answers.event_stream import EventStream
from app.completions.answers.response import ResponseAnswer

__all__ = ["Answer", "ChatAnswer", "CompletionAnswer", "EventStream", "ResponseAnswer"]
