"""Connects the official OpenAI client to a Toque service."""

from __future__ import annotations

import os
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, cast
from urllib.parse import quote

import typer

from app.cli.keys import first_key_file
from app.cli.output import fail
from app.cli.settings import read_settings

if TYPE_CHECKING:
    from openai import APIError, OpenAI

DEFAULT_BASE_URL = "http://127.0.0.1:8000/v1"
BaseUrl = Annotated[
    str, typer.Option(envvar=["TOQUE_BASE_URL", "OPENAI_BASE_URL"], help="Address of the service.")
]


def job_page(base_url: str, job_id: str) -> str:
    """Return the address of a job's page in the console."""
    return f"{base_url.rstrip('/').removesuffix('/v1')}/console/jobs/{job_id}"


def not_empty(value: str) -> str:
    """Refuses an empty id, which an unset variable in a script leaves."""
    if not value:
        raise typer.BadParameter("it is empty")
    return value


@contextmanager
def connect(base_url: str) -> Generator[OpenAI]:
    """Yields a client. An error of the API inside the `with` block ends the command with one line."""
    from openai import APIError, OpenAI  # noqa: PLC0415 - takes a second to import

    with OpenAI(api_key=_api_key(base_url), base_url=base_url) as client:
        try:
            yield client
        except APIError as error:
            fail(describe(error))


def get_object(client: OpenAI, path: str) -> dict[str, Any]:
    """Returns one object of the API."""
    return cast("dict[str, Any]", client.get(path, cast_to=object))


def post_object(client: OpenAI, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Posts a request, exactly once even if the client must send it again; returns the API's answer."""
    answer = client.post(path, cast_to=object, body=body, options={"headers": idempotency_key()})
    return cast("dict[str, Any]", answer)


def list_objects(client: OpenAI, path: str) -> list[dict[str, Any]]:
    """Returns every object of a list, page by page."""
    found: list[dict[str, Any]] = []
    page: dict[str, Any] = {"has_more": True, "last_id": None}
    while page["has_more"]:
        after = f"&after={quote(page['last_id'], safe='')}" if page["last_id"] else ""
        page = get_object(client, f"{path}?limit=100{after}")
        found += page["data"]
    return found


def idempotency_key() -> dict[str, str]:
    """Returns the header that keeps a request one change when the client sends it again."""
    return {"Idempotency-Key": str(uuid.uuid4())}


def given(**fields: object) -> dict[str, Any]:
    """Returns the fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def describe(error: APIError) -> str:
    """Returns the error in one line: message, code, param and request id."""
    from openai import APIConnectionError, APIStatusError  # noqa: PLC0415 - see connect

    if isinstance(error, APIConnectionError):
        reason = str(error.__cause__ or error).rstrip(".")
        host = f"{error.request.url.scheme}://{error.request.url.netloc.decode()}"
        return f"cannot reach {host} ({reason}); is `toque serve` running there?"
    message = _message(error)
    details = {
        "code": error.code,
        "param": error.param,
        "request": error.request_id if isinstance(error, APIStatusError) else None,
    }
    known = ", ".join(f"{name} {value}" for name, value in details.items() if value)
    return f"{message} ({known})" if known else message


def _message(error: APIError) -> str:
    """Returns the service's message without the client's own `Error code: 400 - {…}` around it."""
    if isinstance(error.body, dict) and isinstance(message := error.body.get("message"), str):  # pyright: ignore
        return message
    return error.message


def _api_key(base_url: str) -> str:
    """Returns TOQUE_API_KEY, OPENAI_API_KEY, or the key that `toque serve` keeps in the data folder."""
    settings = read_settings()
    if settings.api_key:
        return settings.api_key.get_secret_value()
    # The two variables belong together: a key of OpenAI's must not be sent to another address.
    if base_url == os.environ.get("OPENAI_BASE_URL") and (key := os.environ.get("OPENAI_API_KEY")):
        return key
    key_file = first_key_file(settings)
    try:
        return key_file.read_text("utf-8").strip()
    except FileNotFoundError:
        fail(f"no API key: set TOQUE_API_KEY, or start `toque serve`, which keeps one in {key_file}", 2)
    except OSError as error:
        fail(f"cannot read the API key: {error}", 2)
