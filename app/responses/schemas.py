"""What is received of stored responses."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class ResponseDeleted(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class InputItems(BaseModel):
    """A page of the items that a response was generated from: OpenAI's `ResponseItemList`."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str
    last_id: str
    has_more: bool

    @classmethod
    def of(cls, items: list[dict[str, Any]], has_more: bool) -> InputItems:
        """Return the page with these items."""
        first, last = (items[0]["id"], items[-1]["id"]) if items else ("", "")
        return cls(data=items, first_id=first, last_id=last, has_more=has_more)
