"""Errors in OpenAI's envelope: `{"error": {"message", "type", "param", "code"}}`.

Envelope: https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel


class ErrorBody(BaseModel):
    """A problem described for a person (`message`) and for a program (`code`, `param`)."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """The body of every response that is not a success."""

    error: ErrorBody


class ToqueError(Exception):
    """An error that a caller can act on; its subclass is its status."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.body = ErrorBody(message=message, type=self.type, param=param, code=code)
        self.headers: dict[str, str] = {}
        if retry_after is not None:
            self.headers["retry-after"] = str(retry_after)


class InvalidRequestError(ToqueError):
    """400: the caller must change the request."""

    status = 400
    type = "invalid_request_error"


class AuthenticationError(ToqueError):
    """401: no key, or one that is not valid. Its challenge is that of RFC 6750, section 3."""

    status = 401
    type = "invalid_request_error"

    def __init__(self, message: str, *, code: str, is_rejected: bool = False) -> None:
        super().__init__(message, code=code)
        reason = ', error="invalid_token"' if is_rejected else ""
        self.headers["www-authenticate"] = f'Bearer realm="toque"{reason}'


class PermissionDeniedError(ToqueError):
    """403: a valid key, but not for this."""

    status = 403
    type = "invalid_request_error"


class NotFoundError(ToqueError):
    """404: not there, or another project's; the two look the same."""

    status = 404
    type = "invalid_request_error"


class ConflictError(ToqueError):
    """409 for good: the official client would retry it, so the response says not to."""

    status = 409
    type = "invalid_request_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message, code=code, param=param)
        self.headers["x-should-retry"] = "false"


class TooLargeError(ToqueError):
    """413: more bytes than a setting allows."""

    status = 413
    type = "invalid_request_error"


class UnsupportedMediaTypeError(ToqueError):
    """415: a body of a kind that the route does not take."""

    status = 415
    type = "invalid_request_error"


class RangeNotSatisfiableError(ToqueError):
    """416: a range that a file of this many bytes does not have (RFC 9110, section 15.5.17)."""

    status = 416
    type = "invalid_request_error"

    def __init__(self, size: int) -> None:
        message = f"The header 'Range' names no range of this file, which has {size:,} bytes."
        super().__init__(message, code="invalid_range", param="Range")
        self.headers["content-range"] = f"bytes */{size}"


class FailedDependencyError(ToqueError):
    """424: something that the request builds on is broken, and stays so: the response says not to retry."""

    status = 424
    type = "invalid_request_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message, code=code, param=param)
        self.headers["x-should-retry"] = "false"


class QuotaExceededError(ToqueError):
    """429 until the project has fewer of something: the response says not to retry before."""

    status = 429
    type = "insufficient_quota"

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message, code=code, param=param)
        self.headers["x-should-retry"] = "false"


class RateLimitError(ToqueError):
    """429: too much in too short a time. `retry-after`, if it is there, says when to try again."""

    status = 429
    type = "rate_limit_error"

    def __init__(self, message: str, *, kind: str, headers: Mapping[str, str]) -> None:
        super().__init__(message, code="rate_limit_exceeded")
        self.body.type = kind  # OpenAI says what there was too much of: `requests` or `tokens`
        self.headers.update(headers)


class UnavailableError(ToqueError):
    """503: nothing wrong with the request; try again after `retry_after` seconds."""

    status = 503
    type = "server_error"

    def __init__(self, message: str, *, code: str = "service_unavailable", retry_after: int = 5) -> None:
        super().__init__(message, code=code, retry_after=retry_after)


class UnprocessableError(ToqueError):
    """422: understood, and contradicting an earlier request."""

    status = 422
    type = "invalid_request_error"


class StorageFullError(ToqueError):
    """507: no room left on the storage."""

    status = 507
    type = "server_error"


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorResponse, "description": "The request cannot be served as it is"},
    "5XX": {"model": ErrorResponse, "description": "The service cannot serve the request now"},
}
"""For every router's `responses`."""
