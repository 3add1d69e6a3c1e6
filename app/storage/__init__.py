"""Where files and adapters are stored: `open_storage` opens the storage that the settings name."""

from __future__ import annotations

from app.core.settings import Settings
from app.storage.base import Storage
from app.storage.local import LocalStorage


def open_storage(settings: Settings) -> Storage:
    """Open the storage that the settings name.

    Raises:
        ValueError: it is in a bucket, whose URL or environment is not complete.
    """
    if not settings.storage_bucket:
        return LocalStorage(settings.storage_root)
    from app.storage.bucket import open_bucket  # noqa: PLC0415 - obstore takes time to import
    from app.storage.cache import Cache  # noqa: PLC0415 - as above
    from app.storage.objects import ObjectStorage  # noqa: PLC0415 - as above

    cache = Cache(settings.storage_cache_root, settings.storage_cache_bytes)
    return ObjectStorage(open_bucket(settings.storage_bucket), cache)
