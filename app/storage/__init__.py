"""Where files and adapters are stored: `open_storage` opens the storage that the settings name."""

from __future__ import annotations

from app.core.settings import Settings
from app.storage.base import Storage
from app.storage.local import LocalStorage


def open_storage(settings: Settings) -> Storage:
    """Opens the storage that the settings name."""
    return LocalStorage(settings.storage_root)
