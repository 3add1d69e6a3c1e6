"""Puts the parts of an upload together, in the order that its owner names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from app.core.errors import InvalidRequestError
from app.storage.base import Storage
from app.storage.incoming import IncomingFile
from app.uploads.models import Upload, UploadPart

_BLOCK_BYTES = 4 * 2**20


def ordered(upload: Upload, parts: Sequence[UploadPart], part_ids: Sequence[str]) -> list[UploadPart]:
    """Return the parts that the request names, after checking that they are the whole file, each once.

    Raises:
        InvalidRequestError: they are not.
    """
    known = {part.id: part for part in parts}
    named: dict[str, UploadPart] = {}
    for position, part_id in enumerate(part_ids):
        param = f"part_ids[{position}]"
        if part_id in named:
            raise InvalidRequestError(
                f"The part '{part_id}' is named twice.", code="part_repeated", param=param
            )
        if part_id not in known:
            raise InvalidRequestError(
                f"No part '{part_id}' in this upload.", code="part_not_found", param=param
            )
        named[part_id] = known[part_id]
    total = sum(part.bytes for part in named.values())
    if total != upload.bytes:
        raise InvalidRequestError(
            f"These parts have {total:,} bytes together; {upload.bytes:,} were announced.",
            code="bytes_mismatch",
            param="part_ids",
        )
    return list(named.values())


def assemble(
    storage: Storage, parts: Sequence[UploadPart], incoming: IncomingFile, *, with_md5: bool
) -> str | None:
    """Copy the parts one after the other, and return the MD5 of all bytes if that is asked for.

    Raises:
        InvalidRequestError: a part that was put into the bucket by its sender is not there, or is not what
            was announced.
        FileNotFoundError: another part is not there.
    """
    md5 = hashlib.md5(usedforsecurity=False) if with_md5 else None
    block = memoryview(bytearray(_BLOCK_BYTES))
    for position, part in enumerate(parts):
        sha256, size = hashlib.sha256(), 0
        try:
            file = storage.open(part.storage_key)
        except FileNotFoundError:
            if part.is_direct:
                raise _unusable(part, position, "has not arrived", "part_missing") from None
            raise
        with file:
            while size <= part.bytes and (count := file.readinto(block)):
                size += count
                incoming.write(block[:count])
                if md5 is not None:
                    md5.update(block[:count])
                if part.is_direct:  # nobody has read it before
                    sha256.update(block[:count])
        if part.is_direct and (size, sha256.hexdigest()) != (part.bytes, part.sha256):
            raise _unusable(part, position, "has other bytes than were announced", "part_mismatch")
    return md5.hexdigest() if md5 is not None else None


def _unusable(part: UploadPart, position: int, problem: str, code: str) -> InvalidRequestError:
    message = f"The part '{part.id}' {problem}: send it again."
    return InvalidRequestError(message, code=code, param=f"part_ids[{position}]")
