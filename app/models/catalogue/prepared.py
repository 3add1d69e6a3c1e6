"""What is known of a base model once it is prepared on this machine."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.errors import UnavailableError
from app.core.settings import BaseModelEntry, Settings
from app.datasets.chat_template import ChatTemplate, TemplateOptions, read_source
from app.datasets.validation import PreparedBase
from app.models.catalogue.catalogue import Catalogue
from app.models.catalogue.models import StoredBaseModel
from app.models.token_mixing import read_config


def is_prepared(settings: Settings, entry: BaseModelEntry) -> bool:
    """Return whether the base model's weights are on this machine."""
    return (settings.base_model_dir(entry) / "config.json").is_file()


def prepared_names(session: Session, settings: Settings) -> list[str]:
    """Return the names of the catalogue's base models whose weights are on this machine."""
    entries = Catalogue.read(session, settings).entries
    return [entry.name for entry in entries if is_prepared(settings, entry)]


def stored_base(session: Session, entry: BaseModelEntry) -> StoredBaseModel | None:
    """Return where the base model's files are in the bucket, or None if they are not there."""
    stored = session.get(StoredBaseModel, entry.name)
    return stored if stored is not None and stored.source == entry.source else None


def obtainable_names(session: Session, settings: Settings) -> list[str]:
    """Return the names of the base models whose weights are on this machine, or in the bucket."""
    entries = Catalogue.read(session, settings).entries
    stored: set[tuple[str, str]] = set()
    if settings.storage_bucket:
        rows = session.execute(select(StoredBaseModel.name, StoredBaseModel.source))
        stored = {(name, source) for name, source in rows}
    return [
        entry.name
        for entry in entries
        if (entry.name, entry.source) in stored or is_prepared(settings, entry)
    ]


@contextmanager
def reading_files(entry: BaseModelEntry) -> Generator[None]:
    """Say which base model it is whose files turn out to be damaged or unreadable.

    Raises:
        UnavailableError: what is read within is not as it should be (`ValueError`), or cannot be read.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        raise UnavailableError(
            f"The files of '{entry.name}' cannot be read: {str(error)[:200]}. "
            f"Remove its folder, and prepare it again with `toque models pull {entry.name}`.",
            code="base_model_damaged",
        ) from error


def hidden_size(settings: Settings, entry: BaseModelEntry) -> int | None:
    """Return the width of the model's residual stream, or None if it is not prepared on this machine."""
    config_file = settings.base_model_dir(entry) / "config.json"
    if not config_file.is_file():
        return None
    size = read_config(config_file.parent).get("hidden_size")
    return size if isinstance(size, int) else None


def chat_template(settings: Settings, entry: BaseModelEntry) -> ChatTemplate | None:
    """Return the base model's template and tokenizer, or None if it is not prepared on this machine."""
    if not is_prepared(settings, entry):
        return None
    return _load_template(settings.base_model_dir(entry), template_options(entry))


def template_options(entry: BaseModelEntry) -> TemplateOptions:
    """Return what the entry changes in its base model's chat template."""
    return TemplateOptions(entry.chat_template_source, entry.chat_template_kwargs)


def with_template(settings: Settings, entry: BaseModelEntry) -> BaseModelEntry:
    """Return the entry with the source of the chat template that is used, where it is on this machine.

    It is None where the base has no template, or is prepared on other machines only.
    """
    source = entry.chat_template_source
    if source is None and is_prepared(settings, entry):
        source = _own_template(settings.base_model_dir(entry))
    return entry.model_copy(update={"chat_template": source})


def prepared_base(settings: Settings, catalogue: Catalogue, name: str | None = None) -> PreparedBase | None:
    """The base whose tokens a check counts: the one that is named, or the catalogue's first that is prepared.

    None where it is not prepared on this machine.

    Raises:
        NotFoundError: the catalogue has no such model.
    """
    entries = [catalogue.get(name, param="base_model")] if name else catalogue.entries
    entry = next((entry for entry in entries if is_prepared(settings, entry)), None)
    if entry is None:
        return None
    folder = str(settings.base_model_dir(entry))
    return PreparedBase(entry.name, folder, entry.context, template_options(entry))


@lru_cache(maxsize=64)
def _own_template(folder: Path) -> str | None:
    try:
        return read_source(folder, TemplateOptions())
    except (OSError, ValueError):
        return None  # its engine does not start either, and says why


@lru_cache(maxsize=8)
def _load_template(folder: Path, options: TemplateOptions) -> ChatTemplate:
    return ChatTemplate.load(folder, options)
