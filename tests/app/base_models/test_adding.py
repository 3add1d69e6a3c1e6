"""Adding base models to the catalogue, and taking them out."""

from __future__ import annotations

import time

import httpx2
import pytest
from openai import OpenAI

from app.base_models.service import add_base_model, remove_base_model
from app.core.database import Database
from app.core.errors import ConflictError, NotFoundError
from app.core.settings import BaseModelEntry, Settings
from app.models.adapters.models import Adapter
from tests.support.aliases import add_model
from tests.support.service import BASE_MODEL

ENTRY = BaseModelEntry(name="added", source="owner/added", also_known_as=["gpt-9"])


def add(database: Database, settings: Settings, entry: BaseModelEntry = ENTRY) -> None:
    with database.writer() as session:
        add_base_model(session, settings, entry)


def remove(database: Database, settings: Settings, name: str) -> None:
    with database.writer() as session:
        remove_base_model(session, settings, name)


@pytest.mark.parametrize("name", ["added", "gpt-9", BASE_MODEL, "gpt-4o-mini"])
def test_a_name_is_given_once(database: Database, settings: Settings, name: str) -> None:
    add(database, settings)
    with pytest.raises(ConflictError, match=f"has a base model '{name}' already"):
        add(database, settings, BaseModelEntry(name="another", source="owner/another", also_known_as=[name]))


def test_a_base_may_not_hide_an_alias(database: Database, settings: Settings, http: httpx2.Client) -> None:
    http.put("/v1/aliases/support", json={"model": BASE_MODEL}).raise_for_status()
    with pytest.raises(ConflictError, match="An alias is called 'support'"):
        add(database, settings, BaseModelEntry(name="support", source="owner/support"))


def test_it_is_gone_once_it_is_removed(database: Database, settings: Settings, client: OpenAI) -> None:
    add(database, settings)
    assert client.models.retrieve("added").owned_by
    remove(database, settings, "gpt-9")
    assert [model.id for model in client.models.list()] == [BASE_MODEL]
    with pytest.raises(NotFoundError):
        remove(database, settings, "added")


def test_what_is_needed_is_not_removed(database: Database, settings: Settings) -> None:
    add(database, settings)
    name = add_model(database, "needed", base_model="added")
    with pytest.raises(ConflictError, match="needed by 1 fine-tuned models and checkpoints and by 0 unf"):
        remove(database, settings, "added")
    with database.writer() as session:
        session.get_one(Adapter, name).deleted_at = time.time()
    remove(database, settings, "added")


def test_what_the_settings_name_is_not_removed(database: Database, settings: Settings) -> None:
    with pytest.raises(ConflictError, match="entry of TOQUE_BASE_MODELS"):
        remove(database, settings, BASE_MODEL)
