"""The catalogue is that of the settings and of the database, and is read anew for every request."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from app.core.database import Database
from app.core.errors import NotFoundError
from app.core.settings import BaseModelEntry, Settings
from app.models.catalogue import Catalogue
from app.models.catalogue.models import BaseModelRow
from tests.support.service import BASE_MODEL


def add(database: Database, name: str, **fields: object) -> None:
    entry = BaseModelEntry.model_validate({"name": name, "source": f"owner/{name}"} | fields)
    with database.writer() as session:
        session.add(BaseModelRow(name=name, entry=entry.model_dump(mode="json")))


def test_a_base_that_is_added_is_known_without_a_restart(http: httpx2.Client, database: Database) -> None:
    assert http.get("/v1/models/added").status_code == 404
    add(database, "added", also_known_as=["gpt-9"])
    assert http.get("/v1/models/gpt-9").json()["id"] == "added"
    listed = [model["id"] for model in http.get("/v1/models").json()["data"]]
    assert listed == [BASE_MODEL, "added"]
    answer = http.post(
        "/v1/chat/completions", json={"model": "added", "messages": [{"role": "user", "content": "a"}]}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")


def test_the_settings_have_the_first_word(settings: Settings, database: Database) -> None:
    add(database, BASE_MODEL, context=64)
    add(database, "later", context=4096, tool_parser="hermes")
    with database.reader() as session:
        catalogue = Catalogue.read(session, settings)
    assert [entry.name for entry in catalogue.entries] == [BASE_MODEL, "later"]
    assert catalogue.get(BASE_MODEL) == settings.base_models[0]
    assert catalogue.get("later").tool_parser == "hermes"
    assert catalogue.engine_base.name == BASE_MODEL
    with pytest.raises(NotFoundError, match=f"Base models here: {BASE_MODEL}, later"):
        catalogue.get("other")


def test_a_process_without_a_database_knows_those_of_the_settings(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, engine_base_model="missing")
    catalogue = Catalogue.load(settings)
    assert [entry.name for entry in catalogue.entries] == [BASE_MODEL]
    with pytest.raises(ValueError, match="no 'missing'"):
        _ = catalogue.engine_base
    assert list(tmp_path.iterdir()) == []
