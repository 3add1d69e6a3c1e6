"""Adding base models to the catalogue, and taking them out."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from openai import OpenAI
from sqlalchemy import text

from app.base_models.service import add_base_model, remove_base_model
from app.core.database import Database
from app.core.errors import ConflictError, NotFoundError
from app.core.settings import BaseModelEntry, Settings
from app.models.adapters.models import Adapter
from tests.support.aliases import add_model
from tests.support.jobs import upload
from tests.support.service import BASE_MODEL
from tests.support.waiting import wait_until

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


def test_what_an_alias_points_to_is_not_removed(
    database: Database, settings: Settings, http: httpx2.Client
) -> None:
    add(database, settings)
    http.put("/v1/aliases/support", json={"model": "gpt-9"}).raise_for_status()
    with pytest.raises(ConflictError, match="Aliases point to 'added': support"):
        remove(database, settings, "added")
    http.put("/v1/aliases/support", json={"model": BASE_MODEL, "version": 1}).raise_for_status()
    remove(database, settings, "added")


def test_what_the_engine_is_to_serve_is_not_removed(database: Database, settings: Settings) -> None:
    add(database, settings)
    with pytest.raises(ConflictError, match="TOQUE_ENGINE_BASE_MODEL names 'added'"):
        remove(database, settings.model_copy(update={"engine_base_model": "gpt-9"}), "added")


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("route", ["aliases", "jobs"])
def test_nothing_begins_to_need_what_is_being_removed(
    database: Database, settings: Settings, client: OpenAI, http: httpx2.Client, route: str
) -> None:
    add(database, settings)
    file_id = upload(client)

    def use() -> httpx2.Response:
        if route == "aliases":
            return http.put("/v1/aliases/support", json={"model": "added"})
        return http.post("/v1/fine_tuning/jobs", json={"model": "added", "training_file": file_id})

    def waits() -> bool:
        with database.reader() as session:
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            return session.execute(text(waiting)).scalar_one() > 0

    with ThreadPoolExecutor() as pool:
        with database.writer() as session:
            remove_base_model(session, settings, "added")
            used = pool.submit(use)
            wait_until(lambda: used.done() or waits(), "the request waits for the removal, or has not")
        assert used.result().status_code == 404, used.result().text


def test_what_the_settings_name_is_not_removed(database: Database, settings: Settings) -> None:
    with pytest.raises(ConflictError, match="entry of TOQUE_BASE_MODELS"):
        remove(database, settings, BASE_MODEL)
