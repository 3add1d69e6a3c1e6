"""A data folder with a database, a key, and published adapters of random weights."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from app.auth import service as auth_service
from app.core.database import Database
from app.core.migrations import upgrade
from app.core.settings import BaseModelEntry, Settings
from app.models.adapters.models import Adapter
from app.models.catalogue import Catalogue

API_KEY = "sk-toque-benchmark"
SLOTS = 8
_ADAPTERS_FOLDER = "adapters"


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment's data folder, and the settings of its processes."""

    settings: Settings

    @property
    def base(self) -> BaseModelEntry:
        return Catalogue(self.settings).engine_base

    @property
    def environment(self) -> dict[str, str]:
        """Returns the environment of its processes, without the developer's own settings."""
        plain = {name: value for name, value in os.environ.items() if not name.startswith("TOQUE_")}
        given = self.settings.model_dump(
            mode="json", exclude_unset=True, exclude_none=True, exclude={"base_models", "api_key"}
        )
        catalogue = ",".join(entry.model_dump_json() for entry in self.settings.base_models)
        return (
            plain
            | {f"TOQUE_{name.upper()}": str(value) for name, value in given.items()}
            | {"TOQUE_BASE_MODELS": f"[{catalogue}]", "TOQUE_API_KEY": API_KEY}
        )

    def adapter_folder(self, name: str) -> Path:
        return self.settings.storage_root / _ADAPTERS_FOLDER / name.rpartition(":")[2]

    def publish_adapters(self, count: int, strength: float = 1.0) -> list[str]:
        """Makes that many adapters of random weights; returns their served names."""
        names = [f"ft:{self.base.name}:{auth_service.FIRST_PROJECT}::{number:03}" for number in range(count)]
        folder = self.settings.storage_root / _ADAPTERS_FOLDER
        arguments = [str(self.settings.base_model_dir(self.base)), str(folder), str(count), str(strength)]
        subprocess.run([sys.executable, "-m", "benchmarks.serving.random_adapters", *arguments], check=True)
        database = Database(self.settings.sqlalchemy_url)
        with database.writer() as session:
            project = auth_service.create_project(session, auth_service.FIRST_PROJECT)
            for name in names:
                key = f"{_ADAPTERS_FOLDER}/{self.adapter_folder(name).name}"
                session.add(
                    Adapter(name=name, project_id=project.id, base_model=self.base.name, storage_key=key)
                )
        database.dispose()
        return names


def create_deployment(folder: Path, database_url: str = "", **given: Any) -> Deployment:
    """Creates a deployment in a new folder, with the base models that are prepared on this machine."""
    folder.mkdir(parents=True)
    settings = Settings(
        data_dir=folder,
        database_url=database_url,
        storage_dir=None,
        models_dir=Settings().models_root,
        api_key=SecretStr(API_KEY),
        engine_max_loras=SLOTS,
        **given,
    )
    upgrade(settings.sqlalchemy_url)
    database = Database(settings.sqlalchemy_url)
    with database.writer() as session:
        auth_service.ensure_first_key(session, API_KEY)
    database.dispose()
    return Deployment(settings)
