"""The input file of a batch: its requests, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from app.completions.schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    GatewayRequest,
    ResponseRequest,
    parse_request,
)
from app.core.errors import ToqueError
from app.core.settings import BaseModelEntry
from app.datasets.lines import UnreadableFileError, read_lines

REQUESTS: dict[str, type[GatewayRequest]] = {
    each.path: each for each in (ChatCompletionRequest, CompletionRequest, ResponseRequest)
}
"""The requests that a batch may consist of, by their route."""
MAX_REQUESTS = 50_000
MAX_BYTES = 200 * 10**6
_MAX_ERRORS = 100
"""The most errors of one file that are listed."""
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not JSON in UTF-8, or too deeply nested."""
_MAX_NAME = 255
"""The most characters of a model's name that the database has room for."""
_MAX_ID = 512
"""The most characters of a `custom_id`."""


class InputLine(msgspec.Struct, frozen=True):
    """A line of the file as it was sent; what is absent or of another type is for `validate` to say."""

    custom_id: Any = None
    method: Any = None
    url: Any = None
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Named(msgspec.Struct, frozen=True):
    """The part of a body that names the model."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=_MAX_NAME, pattern="^[^\\0]*$")]
    """The database is asked for it, and PostgreSQL has no NUL in a text."""


class Request(msgspec.Struct, frozen=True):
    """A request of a file that is valid."""

    number: int
    """The line that it is on, from 1."""
    custom_id: str
    body: bytes


class LineError(msgspec.Struct, frozen=True):
    """Something that is wrong with the file; as `app.batches.schemas.BatchError`."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class Validated(msgspec.Struct, frozen=True):
    """What a validation found: the number of requests, and errors if the file is not valid."""

    requests: int
    errors: list[LineError]


class LineInvalidError(Exception):
    """A line is not a request of the batch."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


def read_requests(path: Path) -> Iterator[Request]:
    """Yield the requests of a file that is valid, in its order.

    Raises:
        UnreadableFileError: the file has been damaged since it was validated.
    """
    for number, content in read_lines(path):
        line = msgspec.json.decode(content, type=InputLine)
        yield Request(number, line.custom_id, bytes(line.body))


def find_model(path: Path) -> str | None:
    """Return the model that the first request names, or None if it names none that could exist."""
    try:
        _, content = next(read_lines(path))
        line = msgspec.json.decode(content, type=InputLine)
        return msgspec.json.decode(line.body, type=_Named).model
    except (StopIteration, UnreadableFileError, *_NOT_JSON):
        return None


def validate(
    path: Path, endpoint: str, model: str | None, bases: Sequence[BaseModelEntry], max_body_bytes: int
) -> Validated:
    """Validate a file as if each of its requests were sent to the gateway.

    Args:
        path: the file.
        endpoint: the route that its requests must be for.
        model: the model that they must name.
        bases: the base models that the model stands for; none if there is no such model.
        max_body_bytes: the largest body of a request.
    """
    validation = _Validation(endpoint, model, bases, max_body_bytes)
    try:
        for number, content in read_lines(path):
            validation.add(number, content)
            if validation.is_over:
                break
    except UnreadableFileError as error:
        validation.errors.append(LineError(error.code, f"{error.message}.", line=error.line))
    if not validation.requests and not validation.errors:
        validation.errors.append(LineError("empty_file", "The file has no requests."))
    return Validated(validation.requests, validation.errors)


class _Validation:
    """A validation in progress."""

    def __init__(
        self, endpoint: str, model: str | None, bases: Sequence[BaseModelEntry], max_body_bytes: int
    ) -> None:
        self.requests = 0
        self.errors: list[LineError] = []
        self._bytes = 0
        self._endpoint, self._model, self._bases = endpoint, model, bases
        self._max_body_bytes = max_body_bytes
        self._lines: dict[str, int] = {}
        """The line of each `custom_id`."""

    @property
    def is_over(self) -> bool:
        """Whether the rest of the file need not be read."""
        return len(self.errors) >= _MAX_ERRORS or self.requests > MAX_REQUESTS or self._bytes > MAX_BYTES

    def add(self, number: int, content: bytes) -> None:
        """Validate a line."""
        self.requests += 1
        self._bytes += len(content) + 1
        try:
            self._check_size()
            self._check(number, content)
        except LineInvalidError as error:
            self.errors.append(LineError(error.code, error.message, error.param, number))

    def _check_size(self) -> None:
        if self.requests > MAX_REQUESTS:
            message = f"The file has more than {MAX_REQUESTS:,} requests: split it."
            raise LineInvalidError("too_many_requests", message)
        if self._bytes > MAX_BYTES:
            message = f"The file is larger than {MAX_BYTES // 10**6} MB: split it."
            raise LineInvalidError("batch_too_large", message)

    def _check(self, number: int, content: bytes) -> None:
        try:
            line = msgspec.json.decode(content, type=InputLine)
        except msgspec.ValidationError:
            raise LineInvalidError("invalid_request", "The line is not a JSON object.") from None
        except _NOT_JSON as error:
            raise LineInvalidError("invalid_json", f"The line is not valid JSON: {error}.") from None
        self._check_id(number, line.custom_id)
        if line.method != "POST":
            raise LineInvalidError("invalid_method", "'method' must be 'POST'.", "method")
        if line.url != self._endpoint:
            message = f"'url' must be the batch's endpoint, '{self._endpoint}'."
            raise LineInvalidError("invalid_url", message, "url")
        self._check_body(line.body)

    def _check_id(self, number: int, custom_id: Any) -> None:
        if custom_id is None:
            raise LineInvalidError("missing_custom_id", "The line has no 'custom_id'.", "custom_id")
        if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _MAX_ID:
            message = f"'custom_id' must be a string of 1 to {_MAX_ID} characters."
            raise LineInvalidError("invalid_custom_id", message, "custom_id")
        first = self._lines.setdefault(custom_id, number)
        if first != number:
            message = f"Line {first} has the same 'custom_id'; each needs its own."
            raise LineInvalidError("duplicate_custom_id", message, "custom_id")

    def _check_body(self, body: msgspec.Raw) -> None:
        if len(body) > self._max_body_bytes:
            message = f"The body is larger than {self._max_body_bytes:,} bytes."
            raise LineInvalidError("body_too_large", message, "body")
        request = parse_body(REQUESTS[self._endpoint], bytes(body))
        if request.model != self._model:
            message = f"All requests of a file must name one model; the first names '{self._model}'."
            raise LineInvalidError("mismatched_model", message, "body.model")
        try:
            for base in self._bases:
                request.check(base)
        except ToqueError as error:
            raise _of_body(error) from None


def parse_body(kind: type[GatewayRequest], body: bytes) -> GatewayRequest:
    """Return the request, as the gateway would parse it.

    Raises:
        LineInvalidError: the gateway would refuse it, or it asks for a stream.
    """
    try:
        request = parse_request(kind, body)
    except ToqueError as error:
        raise _of_body(error) from None
    if request.stream:
        raise LineInvalidError("invalid_value", "'stream' must be false in a batch.", "body.stream")
    return request


def _of_body(error: ToqueError) -> LineInvalidError:
    """Return the error of a request as that of the line that it is on."""
    param = error.body.param
    return LineInvalidError(
        error.body.code or "invalid_value", error.body.message, f"body.{param}" if param else "body"
    )
