"""Bases that call tools, and bases that do not."""

from __future__ import annotations

import pytest

from app.core.settings import BaseModelEntry, Settings
from tests.support.chat_templates import THINKING


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """The catalogue has the demo's base with tools, and bases without."""
    base = settings.base_models[0].model_copy(update={"tool_parser": "hermes", "chat_template": THINKING})
    others = [
        BaseModelEntry(name="no-parser", source="owner/no-parser", chat_template=THINKING),
        BaseModelEntry(
            name="no-place-for-tools",
            source="owner/no-place-for-tools",
            tool_parser="hermes",
            chat_template="{{ messages[-1].content }}",
        ),
    ]
    return settings.model_copy(update={"base_models": [base, *others]})
