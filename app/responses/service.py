"""What can be done with stored responses: keep, continue, read, delete."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import orjson
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.core.errors import InvalidRequestError, NotFoundError
from app.core.pagination import Order
from app.responses.item_ids import items_of, response_id_of
from app.responses.models import StoredResponse

MAX_BYTES = 4 * 2**20
"""The longest conversation that is stored, in bytes of its items as JSON."""
MAX_RESPONSES = 500
"""The most responses that continue each other."""
_DAY_SECONDS = 86400.0

Item = dict[str, Any]


def keep(
    session: Session, project_id: str, input_items: list[Item], response: dict[str, Any], days: float
) -> None:
    """Stores a response with the items of its own request, for so many days."""
    session.add(
        StoredResponse(
            id=response["id"],
            project_id=project_id,
            previous_id=response["previous_response_id"],
            input=input_items,
            response=response,
            bytes=len(orjson.dumps(items_of(input_items, response))),
            expires_at=time.time() + days * _DAY_SECONDS,
        )
    )


def get_response(session: Session, project_id: str, response_id: str) -> StoredResponse:
    """Returns the project's response.

    Raises:
        NotFoundError: it was not stored, was deleted, has expired, or is another project's.
    """
    found = _find(session, project_id, response_id)
    if found is None:
        raise NotFoundError(f"No response '{response_id}'.", code="response_not_found", param="response_id")
    return found


def delete_response(session: Session, project_id: str, response_id: str) -> None:
    """Deletes the project's response; raises the error of `get_response`."""
    session.delete(get_response(session, project_id, response_id))


def read_conversation(session: Session, project_id: str, last_id: str) -> list[Item]:
    """Returns all items of the conversation that ends with the given response, the oldest first.

    Raises:
        InvalidRequestError: a response of it cannot be found, or failed; or it is too long.
    """
    chain: list[StoredResponse] = []
    previous, size = last_id, 0
    while previous is not None:
        found = _find(session, project_id, previous)
        if found is None:
            raise _not_found(last_id, previous)
        if found.response["status"] == "failed":
            raise InvalidRequestError(
                f"The response '{found.id}' failed, so that nothing can continue it; continue the one before "
                "it instead.",
                code="invalid_value",
                param="previous_response_id",
            )
        chain.append(found)
        size += found.bytes
        check_length(len(chain), size, "previous_response_id")
        previous = found.previous_id
    return [item for each in reversed(chain) for item in items_of(each.input, each.response)]


def check_length(responses: int, size: int, param: str) -> None:
    """Checks that a conversation is short enough to be stored.

    Raises:
        InvalidRequestError: it has too many responses, or its items are too many bytes.
    """
    if responses > MAX_RESPONSES:
        raise InvalidRequestError(
            f"The conversation has more than {MAX_RESPONSES} responses: begin another one.",
            code="conversation_too_long",
            param=param,
        )
    if size > MAX_BYTES:
        raise InvalidRequestError(
            f"The conversation is longer than the {MAX_BYTES:,} bytes that are stored: shorten it, or send "
            "what matters of it as 'input' with 'store' set to false.",
            code="conversation_too_long",
            param=param,
        )


def find_items(session: Session, project_id: str, ids: Iterable[str]) -> dict[str, Item]:
    """Returns those of the items that belong to stored responses of the project, by their ids."""
    wanted = {response_id for each in ids if (response_id := response_id_of(each)) is not None}
    found = session.scalars(
        select(StoredResponse).where(
            StoredResponse.id.in_(wanted),
            StoredResponse.project_id == project_id,
            StoredResponse.expires_at > time.time(),
        )
    )
    return {item["id"]: item for each in found for item in items_of(each.input, each.response)}


def list_input_items(
    session: Session, project_id: str, response_id: str, *, after: str | None, limit: int, order: Order
) -> tuple[list[Item], bool]:
    """Returns a page of the items that a response was generated from, and whether more follow.

    They are those of its own request, after those of the responses that it continues.

    Raises:
        NotFoundError: as `get_response`.
        InvalidRequestError: `after` is none of the items; or a response that it continues cannot be found.
    """
    response = get_response(session, project_id, response_id)
    before = read_conversation(session, project_id, response.previous_id) if response.previous_id else []
    items = [*before, *response.input]
    if order == "desc":
        items.reverse()
    start = 0
    if after is not None:
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise InvalidRequestError(f"No item '{after}' in this list.", code="invalid_value", param="after")
        start = places[0] + 1
    return items[start : start + limit], len(items) > start + limit


def delete_expired(session: Session) -> None:
    """Deletes the responses that have expired."""
    session.execute(delete(StoredResponse).where(StoredResponse.expires_at <= time.time()))


def _find(session: Session, project_id: str, response_id: str) -> StoredResponse | None:
    found = session.get(StoredResponse, response_id)
    is_visible = found is not None and found.project_id == project_id and found.expires_at > time.time()
    return found if is_visible else None


def _not_found(asked_for: str, missing: str) -> InvalidRequestError:
    message = f"No response '{asked_for}' to continue"
    if missing != asked_for:
        message = f"The response '{asked_for}' continues '{missing}', which cannot be found"
    return InvalidRequestError(
        f"{message}: it was not stored, has expired, or was deleted. Send the conversation as 'input'.",
        code="previous_response_not_found",
        param="previous_response_id",
    )
