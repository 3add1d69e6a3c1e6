"""What can be done with stored responses: keep, continue, read, delete."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import orjson
from sqlalchemy import delete
from sqlalchemy.orm import Session

from app.core.errors import InvalidRequestError, NotFoundError
from app.core.pagination import Order
from app.responses.item_ids import items_of, response_id_of
from app.responses.models import StoredResponse

MAX_BYTES = 4 * 2**20
"""The longest conversation that is stored, in bytes of its items as JSON."""
MAX_STORED_BYTES = 16 * 2**20
"""The most that is read of the database for one request: the items, and what each response repeats of its
own request, such as its instructions and its tools."""
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
            bytes=len(orjson.dumps(input_items)) + len(orjson.dumps(response)),
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


def read_conversation(
    session: Session, project_id: str, last_id: str, *, continued_by: str | None = None
) -> list[Item]:
    """Returns all items of the conversation that ends with the given response, the oldest first.

    `continued_by` is the response after it, if that is the one that the request names.

    Raises:
        InvalidRequestError: a response of it cannot be found, or failed; or it is too long.
    """
    param = "previous_response_id" if continued_by is None else "response_id"
    chain: list[list[Item]] = []
    previous, size, stored = last_id, 0, 0
    while previous is not None:
        found = _find(session, project_id, previous)
        if found is None:
            raise _not_found(continued_by or last_id, previous, param)
        if found.response["status"] == "failed":
            raise InvalidRequestError(
                f"The response '{found.id}' failed, so that nothing can continue it; continue the one before "
                "it instead.",
                code="invalid_value",
                param=param,
            )
        items = items_of(found.input, found.response)
        chain.append(items)
        size += len(orjson.dumps(items))
        stored += found.bytes
        check_length(len(chain), size, param, stored=stored)
        previous = found.previous_id
    return [item for items in reversed(chain) for item in items]


def check_length(responses: int, size: int, param: str, *, stored: int = 0) -> None:
    """Checks that a conversation is short enough to be stored, and to be read again.

    Args:
        responses: how many it has.
        size: the bytes of its items as JSON.
        param: the field of the request that it is about.
        stored: the bytes of its responses as they are stored, which repeat instructions and tools.

    Raises:
        InvalidRequestError: it is not.
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
    if stored > MAX_STORED_BYTES:
        raise InvalidRequestError(
            "The conversation's responses, with the instructions and tools that each repeats, are longer "
            f"than the {MAX_STORED_BYTES:,} bytes that are read: begin another one.",
            code="conversation_too_long",
            param=param,
        )


def find_items(session: Session, project_id: str, ids: Sequence[str]) -> dict[str, Item]:
    """Returns those of the items that belong to stored responses of the project, by their ids.

    Raises:
        InvalidRequestError: together the items are longer than a conversation may be, each counted as often
            as it is there; or they are of too many or too long responses.
    """
    times = Counter(ids)
    wanted = {response_id for each in times if (response_id := response_id_of(each)) is not None}
    check_length(len(wanted), 0, "input")
    items: dict[str, Item] = {}
    size = stored = 0
    for response_id in wanted:
        if (found := _find(session, project_id, response_id)) is None:
            continue
        referred = [item for item in items_of(found.input, found.response) if item["id"] in times]
        items |= {item["id"]: item for item in referred}
        size += sum(times[item["id"]] * len(orjson.dumps(item)) for item in referred)
        stored += found.bytes
        check_length(len(wanted), size, "input", stored=stored)
    return items


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
    before: list[Item] = []
    if response.previous_id:
        before = read_conversation(session, project_id, response.previous_id, continued_by=response_id)
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


def _not_found(asked_for: str, missing: str, param: str) -> InvalidRequestError:
    message = f"No response '{asked_for}' to continue"
    if missing != asked_for:
        message = f"The response '{asked_for}' continues '{missing}', which cannot be found"
    remedy = " Send the conversation as 'input'." if param == "previous_response_id" else ""
    return InvalidRequestError(
        f"{message}: it was not stored, has expired, or was deleted.{remedy}",
        code="previous_response_not_found",
        param=param,
    )
