"""The body of a request, parsed within bounds, wherever it comes from."""

from __future__ import annotations

from typing import TypeVar

import orjson
from pydantic import ValidationError

from app.completions.schemas.sampling import GatewayRequest
from app.core.errors import InvalidRequestError
from app.core.validation_errors import validation_error

MOST_VALUES = 2**19
"""In a body, by its commas: most of them may be tokens of prompts."""
_MOST_PROBLEMS = 1000
"""In a body. To describe one takes pydantic far longer than to find it."""

Kind = TypeVar("Kind", bound=GatewayRequest)


def parse_request(kind: type[Kind], content: bytes) -> Kind:
    """Return the request that a body is.

    Raises:
        InvalidRequestError: the body is not such a request, or has too many values.
    """
    if content.count(b",") > MOST_VALUES:  # a line of a batch, since the API counts as it reads
        raise too_many_values(MOST_VALUES)
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        if error.error_count() > _MOST_PROBLEMS:
            raise InvalidRequestError(
                f"The body has {error.error_count():,} invalid values.", code="invalid_value"
            ) from None
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]
        if not content:
            problems = [{"type": "missing", "loc": ("body",), "msg": "Field required"}]
        raise validation_error(problems, _parsed(content)) from None


def too_many_values(most: int) -> InvalidRequestError:
    """Return the error for a body with more values than `most`."""
    return InvalidRequestError(
        f"The body has more than {most:,} values. Send less at once.", code="invalid_value"
    )


def _parsed(content: bytes) -> object:
    """Return the body as parsed JSON; None if there is none.

    Raises:
        InvalidRequestError: it is not JSON, such as one with `Infinity`, which pydantic reads.
    """
    try:
        return orjson.loads(content) if content else None
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}", code="invalid_json") from None
