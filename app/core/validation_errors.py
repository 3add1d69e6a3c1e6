"""What pydantic finds wrong with a request, as an error of the API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from app.core.errors import InvalidRequestError

_LONGEST_PARAM = 255
"""The most characters of a path that are quoted, since a client chooses some of its parts."""
_MOST_PROBLEMS = 100
"""The most problems of a request that are looked at."""


def validation_error(problems: Sequence[Mapping[str, Any]], body: Any) -> InvalidRequestError:
    """Return the error for what pydantic found, whose locations begin with `body` or the like.

    It tells of the first problem. But where a field may have several forms, each that it does not have is
    a problem, and the one that is found deepest in the field says most.

    Args:
        problems: what pydantic's `ValidationError.errors` returns.
        body: the request's body as parsed JSON; None if it is not JSON.
    """
    problems = problems[:_MOST_PROBLEMS]
    paths = [param_path(problem, body)[:_LONGEST_PARAM] for problem in problems]
    deepest = 0
    for place, path in enumerate(paths):
        is_within = path.startswith((f"{paths[0]}.", f"{paths[0]}["))
        if is_within and _depth(path) > _depth(paths[deepest]):
            deepest = place
    return _error(problems[deepest], paths[deepest])


def _error(problem: Mapping[str, Any], path: str) -> InvalidRequestError:
    code = "invalid_value"
    match problem["type"]:
        case "json_invalid":
            syntax = problem.get("ctx", {}).get("error", "")
            return InvalidRequestError(f"The body is not valid JSON: {syntax}", code="invalid_json")
        case "missing" | "union_tag_not_found":
            code = "missing_required_parameter"
            message = f"Missing required parameter '{path}'." if path else "The request has no body."
        case "extra_forbidden":
            code = "unknown_parameter"
            message = f"Unknown parameter '{path}'."
        case "unsupported_parameter" | "unsupported_value":  # what OpenAI has, and a schema refuses by name
            code = problem["type"]
            subject = "parameter" if code == "unsupported_parameter" else "value for"
            message = f"Unsupported {subject} '{path}': {problem['msg']}."
        case _:
            subject = f"Invalid value for '{path}'" if path else "Invalid request"
            message = f"{subject}: {reason(problem)}."
    return InvalidRequestError(message, code=code, param=path or None)


def reason(problem: Mapping[str, Any]) -> str:
    """Return what is wrong with a value, without its place."""
    if problem["type"] == "union_tag_invalid":
        return f"{problem['ctx']['tag']!r:.80} is none of {problem['ctx']['expected_tags']}"
    return str(problem["msg"]).removeprefix("Value error, ")


def _depth(path: str) -> int:
    return path.count(".") + path.count("[")


def param_path(problem: Mapping[str, Any], body: Any) -> str:
    """Write the location `("body", "messages", 0, "role")` as `messages[0].role`.

    In a union, pydantic's location also names the branch, by its own name or by the object's `type`. That is
    no place in the body, so it is left out.
    """
    kind, *location = problem["loc"]
    if kind != "body":
        return str(location[0]) if location else ""
    path, place = "", body
    for position, part in enumerate(location, start=1):
        is_last = position == len(location)
        if isinstance(part, int) and isinstance(place, list):
            items = cast("list[Any]", place)
            path += f"[{part}]"
            place = items[part] if part < len(items) else None
        elif isinstance(part, str) and isinstance(place, dict):
            known = cast("dict[str, Any]", place)
            is_branch = known.get("type") == part and not isinstance(known.get(part), dict | list)
            if not is_last and (part not in known or is_branch):
                continue
            if part not in known and problem["type"] != "missing":
                continue
            path += f".{part}" if path else part
            place = known.get(part)
    if problem["type"].startswith("union_tag_") and isinstance(place, dict):
        discriminator = str(problem["ctx"]["discriminator"])
        if discriminator.startswith("'"):  # a field's name; a function's has no quotes
            path = f"{path}.{discriminator[1:-1]}".removeprefix(".")
    return path
