"""Fields of responses that the specification lets be absent, and never null."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import Field

T = TypeVar("T")

OmittedIfNone = Annotated[T | None, Field(exclude_if=lambda value: value is None)]
"""A field that a response leaves out while it is None."""
