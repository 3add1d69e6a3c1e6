"""The catalogue of base models, and what is known of each once it is prepared."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from app.core.errors import NotFoundError
from app.core.settings import BaseModelEntry, Settings
from app.datasets.chat_template import ChatTemplate
from app.datasets.validation import PreparedBase


def find_base_model(settings: Settings, name: str, *, param: str = "model") -> BaseModelEntry:
    """Return the base model of that name.

    Raises:
        NotFoundError: the catalogue has no such model; the message lists those it has.
    """
    entry = settings.base_model(name)
    if entry is None:
        known = ", ".join(entry.name for entry in settings.base_models)
        raise NotFoundError(
            f"The model '{name[:255]}' does not exist. Base models here: {known}.",
            code="model_not_found",
            param=param,
        )
    return entry


def is_prepared(settings: Settings, entry: BaseModelEntry) -> bool:
    """Return whether the base model's weights are on this machine."""
    return (settings.base_model_dir(entry) / "config.json").is_file()


def hidden_size(settings: Settings, entry: BaseModelEntry) -> int | None:
    """Return the width of the model's residual stream, or None if it is not prepared on this machine."""
    config_file = settings.base_model_dir(entry) / "config.json"
    if not config_file.is_file():
        return None
    config = json.loads(config_file.read_text("utf-8"))
    size = config.get("hidden_size")
    return size if isinstance(size, int) else None


def chat_template(settings: Settings, entry: BaseModelEntry) -> ChatTemplate | None:
    """Return the base model's template and tokenizer, or None if it is not prepared on this machine."""
    return _load_template(settings.base_model_dir(entry)) if is_prepared(settings, entry) else None


def prepared_base(settings: Settings, name: str | None = None) -> PreparedBase | None:
    """The base whose tokens a check counts: the one that is named, or the catalogue's first that is prepared.

    None where it is not prepared on this machine.

    Raises:
        NotFoundError: the catalogue has no such model.
    """
    entries = [find_base_model(settings, name, param="base_model")] if name else settings.base_models
    entry = next((entry for entry in entries if is_prepared(settings, entry)), None)
    return PreparedBase(entry.name, str(settings.base_model_dir(entry)), entry.context) if entry else None


@lru_cache(maxsize=8)
def _load_template(folder: Path) -> ChatTemplate:
    return ChatTemplate.load(folder)
