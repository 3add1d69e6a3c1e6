"""The manifest of a backup: every file in it with its SHA-256. A folder without one holds no whole backup."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.backup.errors import BackupError
from app.storage.local import LocalStorage

NAME = "manifest.json"


class Content(BaseModel):
    """What a file of the backup holds."""

    model_config = ConfigDict(extra="forbid")

    bytes: int
    sha256: str
    modified_ns: int | None = None
    """When the file that was copied had been modified, since the epoch; None of the database."""


class Manifest(BaseModel):
    """A whole backup. Its keys are those of the storage that it was made of."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    version: str
    """The version of Toque that made it."""
    revision: str
    """The revision of the database's schema."""
    created_at: float
    dialect: Literal["sqlite", "postgresql"]
    database_name: str = Field(pattern=r"^database-[0-9a-f]{16}$")
    """The file that holds the database, beside the manifest."""
    database: Content
    files: dict[str, Content]
    """The files of the storage, by key."""
    missing: list[str]
    """Keys that the database names and that the storage did not have when the backup was made."""


def storage_of(folder: Path) -> LocalStorage:
    """Return the storage that a backup's files are in."""
    return LocalStorage(folder / "storage")


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of the backup in a folder.

    Raises:
        BackupError: there is no whole backup, or a newer version has made it.
    """
    try:
        return Manifest.model_validate_json((folder / NAME).read_bytes())
    except FileNotFoundError:
        raise BackupError(f"{folder} holds no whole backup: it has no {NAME}") from None
    except OSError as error:
        raise BackupError(f"{folder / NAME} cannot be read: {error.strerror}") from None
    except ValidationError:
        raise BackupError(f"{folder / NAME} is damaged, or was written by a newer version") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest of a folder in one step, which makes the backup whole."""
    LocalStorage(folder).write(NAME, manifest.model_dump_json(indent=1).encode())


def find_damage(folder: Path, manifest: Manifest) -> list[str]:
    """Read all of a backup, and return what is wrong with it, a line for each file."""
    storage = storage_of(folder)
    expected = [(LocalStorage(folder), "", manifest.database_name, manifest.database)]
    expected += [(storage, "storage/", key, content) for key, content in manifest.files.items()]
    problems = ((f"{place}{key}", _problem(each, key, content)) for each, place, key, content in expected)
    return [f"{name} {problem}" for name, problem in problems if problem]


def _problem(storage: LocalStorage, key: str, content: Content) -> str | None:
    try:
        with storage.open(key) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except ValueError as error:
        return str(error)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if found == content.sha256 else "is not as it was written"
