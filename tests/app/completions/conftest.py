"""Bases that call tools, and bases that do not."""

from __future__ import annotations

import pytest

from app.core.settings import BaseModelEntry, Settings


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """The catalogue has the demo's base, which calls tools, and bases that do not."""
    others = [
        BaseModelEntry(name="no-parser", source="owner/no-parser", chat_template="smollm2"),
        BaseModelEntry(
            name="no-place-for-tools",
            source="owner/no-place-for-tools",
            tool_parser="hermes",
            chat_template="{{ messages[-1].content }}",
        ),
    ]
    return settings.model_copy(update={"base_models": [*settings.base_models, *others]})
