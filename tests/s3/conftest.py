"""A service whose files are in a bucket of a real server; its processes share nothing else but a database."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.settings import Settings
from tests.s3.server import BUCKET, S3Server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark these tests, and leave out SQLite, which is a file that processes share."""
    for item in [item for item in items if item.path.parent == Path(__file__).parent]:
        item.add_marker(pytest.mark.s3)
        if "sqlite" in item.nodeid:
            items.remove(item)


@pytest.fixture(scope="session")
def server() -> Iterator[S3Server]:
    folder = Path(tempfile.mkdtemp(prefix="toque-s3-"))
    server = S3Server(folder)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def _credentials(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def settings(settings: Settings, tmp_path: Path, _credentials: None) -> Settings:
    """The API's settings; other processes have the same with other folders (`elsewhere`)."""
    url = f"s3://{BUCKET}/{tmp_path.name}"
    return elsewhere(settings.model_copy(update={"storage_url": url}), tmp_path / "api")


def elsewhere(settings: Settings, folder: Path) -> Settings:
    """The settings of a process that has a folder of its own."""
    folder.mkdir()
    own = {"data_dir": folder, "storage_dir": None, "storage_cache_dir": None}
    # Not `model_copy`, which keeps what was derived from the old values.
    return Settings.model_validate(settings.model_dump() | own)
