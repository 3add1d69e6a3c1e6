"""What pydantic finds wrong with a request, as an error of the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from app.core.errors import InvalidRequestError

_LONGEST_PARAM = 255
"""The most characters of a path that are quoted, since a client chooses some of its parts."""
_CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}


def validation_error(problem: Mapping[str, Any], body: Any) -> InvalidRequestError:
    """Return the error for one of pydantic's, whose location begins with `body` or the like.

    Args:
        problem: an item of what pydantic's `ValidationError.errors` returns.
        body: the request's body as parsed JSON; None if it is not JSON.
    """
    if problem["type"] == "json_invalid":
        reason = problem.get("ctx", {}).get("error", "")
        return InvalidRequestError(f"The body is not valid JSON: {reason}", code="invalid_json")
    path = _param_path(problem["loc"], body)[:_LONGEST_PARAM]
    code = _CODES.get(problem["type"])
    subject = f"Invalid value for '{path}'" if path else "Invalid request"
    if problem["type"] == "missing":
        subject = f"Missing required parameter '{path}'" if path else "The request has no body"
    elif problem["type"] == "extra_forbidden":
        subject = f"Unknown parameter '{path}'"
    message = f"{subject}: {problem['msg']}." if code is None else f"{subject}."
    return InvalidRequestError(message, code=code or "invalid_value", param=path or None)


def _param_path(location: tuple[int | str, ...], body: Any) -> str:
    """Write `("body", "messages", 0, "role")` as `messages[0].role`.

    In a union, pydantic's location also names the branch, by its own name or by the object's `type`. That is
    no place in the body, so it is left out.
    """
    path, place = "", body
    for position, part in enumerate(location[1:], start=2):
        if isinstance(part, int) and isinstance(place, list):
            path += f"[{part}]"
            place = cast("list[Any]", place)[part]
        elif isinstance(part, str) and isinstance(place, dict):
            known = cast("dict[str, Any]", place)
            is_branch = known.get("type") == part and not isinstance(known.get(part), dict | list)
            if position < len(location) and (part not in known or is_branch):
                continue
            path += f".{part}" if path else part
            place = known.get(part)
        elif location[0] != "body" and position == 2:
            path = str(part)
    return path
