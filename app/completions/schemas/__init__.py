"""Completion requests: exactly the fields that may reach an engine.

Any other field (`chat_template`, `documents`, `extra_args`, …) is refused by name, and so are content parts
other than text, so that no request can make an engine fetch a URL or run a template. OpenAI's fields that
have no meaning here are accepted and dropped.
"""

from __future__ import annotations

from app.completions.schemas.chat import ChatCompletionRequest
from app.completions.schemas.completion import CompletionRequest
from app.completions.schemas.request_body import parse_request
from app.completions.schemas.responses import ResponseRequest
from app.completions.schemas.sampling import GatewayRequest, Temperature, Tokens

__all__ = [
    "ChatCompletionRequest",
    "CompletionRequest",
    "GatewayRequest",
    "ResponseRequest",
    "Temperature",
    "Tokens",
    "parse_request",
]
