"""Pagination as OpenAI's clients do it: `limit` objects at a time, from `after` the last id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel
from sqlalchemy import Select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.core.errors import InvalidRequestError

T = TypeVar("T")


class Identified(BaseModel):
    """An object that lists are paged by."""

    id: str


ItemT = TypeVar("ItemT", bound=Identified)
Order = Literal["asc", "desc"]


class Page(BaseModel, Generic[ItemT]):
    """One page; the next one starts after `last_id`."""

    object: Literal["list"] = "list"
    data: list[ItemT]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False

    @classmethod
    def of(cls, data: list[ItemT], has_more: bool) -> Page[ItemT]:
        """Return the page with these objects."""
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return cls(data=data, first_id=first, last_id=last, has_more=has_more)


def fetch_page(
    session: Session,
    query: Select[T],
    key: Sequence[InstrumentedAttribute[Any]],
    *,
    identity: InstrumentedAttribute[str],
    after: str | None,
    limit: int,
    order: Order = "desc",
) -> tuple[Sequence[T], bool]:
    """Return rows after the one whose `identity` is `after`, in the order of `key`, and whether more follow.

    Raises:
        InvalidRequestError: `after` is not in the list.
    """
    if after is not None:
        cursor = session.execute(query.with_only_columns(*key).where(identity == after)).first()
        if cursor is None:
            raise InvalidRequestError(
                f"No object '{after}' in this list.", code="invalid_value", param="after"
            )
        row, bound = tuple_(*key), tuple_(*cursor)
        query = query.where(row > bound if order == "asc" else row < bound)
    columns = [column.asc() if order == "asc" else column.desc() for column in key]
    found = session.scalars(query.order_by(*columns).limit(limit + 1)).all()
    return found[:limit], len(found) > limit
