"""The prompts of `POST /v1/completions`: a text or a list of token ids, or a list of either."""

from __future__ import annotations

from typing import Annotated, Literal, cast

from pydantic import Discriminator, Field, Tag

from app.core.errors import InvalidRequestError
from app.core.settings import BaseModelEntry

MAX_PARTS = 1024
"""In one message."""
_MOST_PROMPTS = 64
_MOST_TOKENS = 2**18
"""In one prompt. No base model here reads as many, and no list that is longer is read to its end."""

TokenId = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
"""An id of the model's tokenizer. The engine refuses ids that its model does not have."""
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=_MOST_TOKENS, fail_fast=True)]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=_MOST_PROMPTS, fail_fast=True)]
TokenIdLists = Annotated[list[TokenIds], Field(min_length=1, max_length=_MOST_PROMPTS, fail_fast=True)]


def _form_of(prompt: object) -> Literal["text", "texts", "token_ids", "token_id_lists"] | None:
    """Returns which of the four forms a prompt has, by its first element; None if it has none of them.

    Trying one form after the other would collect an error for each element of a list, of which a hostile
    request has millions.
    """
    if isinstance(prompt, str):
        return "text"
    if not isinstance(prompt, list):
        return None
    first = next(iter(cast("list[object]", prompt)), "")
    if isinstance(first, list):
        return "token_id_lists"
    return "token_ids" if isinstance(first, int | float) else "texts"


Prompt = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[Texts, Tag("texts")]
    | Annotated[TokenIds, Tag("token_ids")]
    | Annotated[TokenIdLists, Tag("token_id_lists")],
    Discriminator(
        _form_of,
        custom_error_type="prompt_type",
        custom_error_message="It must be a text or a list of token ids, or a list of either",
    ),
]


def check_count(count: int, base: BaseModelEntry, param: str) -> None:
    """Check that messages, with their parts, are not more than the context has tokens: each takes one.

    Raises:
        InvalidRequestError: they are; without this bound, engines would spend seconds on rendering them.
    """
    if count > base.context:
        raise InvalidRequestError(
            f"The conversation has {count:,} messages and parts, and the context of '{base.name}' is "
            f"{base.context:,} tokens.",
            code="context_length_exceeded",
            param=param,
        )


def one_by_one(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str] | list[list[int]]:
    """Returns the prompts, however many there are."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [cast("list[int]", prompt)]
    return cast("list[str] | list[list[int]]", prompt)


def most_tokens(prompt: str | list[int]) -> int:
    """Returns how many tokens a prompt has, or for a text how many it has at most: one for each byte."""
    return len(prompt.encode() if isinstance(prompt, str) else prompt)
