"""An object that is being written: streamed to `incoming/…` and hashed, until it is copied to its key."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Generator
from contextlib import contextmanager

import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store
from typing_extensions import override

from app.storage.base import StorageUnavailableError
from app.storage.incoming import IncomingFile

log = logging.getLogger("toque.storage")

Bucket = S3Store | GCSStore | AzureStore

_PART_BYTES = 8 * 2**20
_PARTS_AT_ONCE = 4


class IncomingObject(IncomingFile):
    """An object that is written in parts, or in one request if it is small."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__()
        self.key = f"incoming/{secrets.token_hex(16)}"
        self._bucket = bucket
        self._writer = obstore.open_writer(
            bucket, self.key, buffer_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE
        )

    @override
    def finish(self) -> None:
        """Complete the object under its temporary key; no more can be written."""
        if not self._writer.closed():
            with reaching():
                self._writer.close()

    @override
    def discard(self) -> None:
        """Delete the object; what cannot be deleted now is swept like every orphan."""
        try:
            self.finish()  # else the server would keep its parts for ever
            with reaching():
                obstore.delete(self._bucket, self.key)
        except FileNotFoundError:
            pass
        except StorageUnavailableError:
            log.warning("%s is not deleted", self.key)

    @override
    def _append(self, chunk: bytes | memoryview) -> None:
        with reaching():
            self._writer.write(bytes(chunk))  # which obstore keeps, while the caller may reuse its buffer


@contextmanager
def reaching() -> Generator[None]:
    """Make obstore's errors one of ours; that there is no such object is `FileNotFoundError`."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (BaseError, OSError) as error:
        log.warning("the bucket cannot be used now: %s", str(error).partition("\n")[0][:500])
        raise StorageUnavailableError from error  # callers are not told of addresses
