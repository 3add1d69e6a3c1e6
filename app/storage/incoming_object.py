"""An object that is being written: streamed to `incoming/…` and hashed, until it is copied to its key."""

from __future__ import annotations

import logging
import secrets

import obstore
from typing_extensions import override

from app.storage.base import StorageUnavailableError
from app.storage.bucket import Bucket, reaching
from app.storage.incoming import IncomingFile

log = logging.getLogger("toque.storage")

ATTRIBUTES: dict[str, str] = {"Content-Type": "application/octet-stream", "Content-Disposition": "attachment"}
"""What a browser that opens a signed URL is told: to save the file, not to show it."""
LARGEST_COPY = 5 * 2**30
"""What S3 copies in one request; https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html."""
_PART_BYTES = 8 * 2**20
_COPIED_BYTES = 64 * 2**20
_PARTS_AT_ONCE = 4


class IncomingObject(IncomingFile):
    """An object that is written in parts, or in one request if it is small."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__()
        self.key = f"incoming/{secrets.token_hex(16)}"
        self._bucket = bucket
        self._writer = obstore.open_writer(
            bucket,
            self.key,
            attributes=ATTRIBUTES,
            buffer_size=_PART_BYTES,
            max_concurrency=_PARTS_AT_ONCE,
        )

    @override
    def finish(self) -> None:
        """Complete the object under its temporary key; no more can be written."""
        if not self._writer.closed():
            with reaching():
                self._writer.close()

    def copy_to(self, key: str, largest: int) -> None:
        """Copy the finished object to its key, where it is once all of it is.

        The server does that, unless it has more bytes than `largest`. S3 would then have to be asked for each
        part, which obstore cannot do, so the object is read and written again.
        """
        with reaching():
            if self.bytes <= largest:
                obstore.copy(self._bucket, self.key, key)
                return
            writer = obstore.open_writer(
                self._bucket,
                key,
                attributes=ATTRIBUTES,
                buffer_size=_COPIED_BYTES,
                max_concurrency=_PARTS_AT_ONCE,
            )
            for chunk in obstore.get(self._bucket, self.key).stream(_PART_BYTES):
                writer.write(chunk)
            writer.close()

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
