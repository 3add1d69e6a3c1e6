"""A line of a batch's output file or error file.

OpenAI describes the lines in https://platform.openai.com/docs/api-reference/batch/request-output.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from app.batches.input_file import Request
from app.core.database import new_id
from app.core.errors import ToqueError

_OK = 200


def answer_line(request: Request, answer: bytes) -> bytes:
    """Return the line for an answer, which is a JSON object."""
    return _line(request, response=_response(_OK, msgspec.Raw(answer)))


def refusal_line(request: Request, error: ToqueError) -> bytes:
    """Return the line for a request that was refused, or that failed."""
    body = orjson.dumps({"error": error.body.model_dump()})
    return _line(request, response=_response(error.status, msgspec.Raw(body)))


def unanswered_line(request: Request, *, is_cancelled: bool) -> bytes:
    """Return the line for a request that was not asked, or not to its end."""
    code, message = (
        ("batch_cancelled", "The batch was cancelled before this request was answered.")
        if is_cancelled
        else ("batch_expired", "The completion window ended before this request was answered.")
    )
    return _line(request, error={"code": code, "message": message})


def _response(status: int, body: msgspec.Raw) -> dict[str, Any]:
    return {"status_code": status, "request_id": new_id("req_"), "body": body}


def _line(request: Request, *, response: Any = None, error: Any = None) -> bytes:
    line = {
        "id": new_id("batch_req_"),
        "custom_id": request.custom_id,
        "response": response,
        "error": error,
    }
    return msgspec.json.encode(line) + b"\n"
