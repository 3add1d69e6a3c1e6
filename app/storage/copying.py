"""Copies one storage into another, to move a deployment; what was copied already is left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from app.storage.base import Entry, Storage
from app.storage.manifest import MANIFEST

_BLOCK_BYTES = 4 * 2**20
_LEFT_OUT = ("tmp/", "incoming/")
"""What is still being written."""


class ChangedError(Exception):
    """A file did not arrive as it is named; the message says which."""


@dataclass(frozen=True, slots=True)
class Copied:
    """A file that the target has now."""

    key: str
    bytes: int
    is_new: bool


def copy_storage(source: Storage, target: Storage) -> Iterator[Copied]:
    """Copy all files, the manifest of each folder last; it may be interrupted and run again.

    Raises:
        ChangedError: a file's content is not what its name says.
        StorageFullError, OSError: one of the two cannot be used now.
    """
    there = {entry.key: entry.bytes for entry in target.files("")}
    entries = [entry for entry in source.files("") if not entry.key.startswith(_LEFT_OUT)]
    for entry in sorted(entries, key=_manifests_last):
        is_new = there.get(entry.key) != entry.bytes
        if is_new:
            _copy(source, target, entry)
        yield Copied(entry.key, entry.bytes or 0, is_new)


def _manifests_last(entry: Entry) -> tuple[bool, str]:
    return entry.key.endswith(f"/{MANIFEST}"), entry.key


def _copy(source: Storage, target: Storage, entry: Entry) -> None:
    with source.open(entry.key) as file, target.incoming() as incoming:
        while block := file.read(_BLOCK_BYTES):
            incoming.write(block)
        if entry.key.startswith("objects/") and not entry.key.endswith(incoming.sha256):
            raise ChangedError(f"{entry.key} is damaged: its content is not what its name says")
        target.publish(incoming, entry.key)
