"""The manifest of a published folder: a JSON object with the SHA-256 of each of its other files."""

from __future__ import annotations

import json
from collections.abc import Mapping

import msgspec

MANIFEST = "manifest.json"


class _Manifest(msgspec.Struct):
    sha256: dict[str, str]


def write_sums(sums: Mapping[str, str]) -> bytes:
    """Return the manifest of files with these SHA-256 in hexadecimal, by name."""
    return json.dumps({"sha256": dict(sums)}, indent=2).encode()


def read_sums(manifest: bytes) -> dict[str, str]:
    """Return the SHA-256 of each file, by name.

    Raises:
        ValueError: it is no manifest.
    """
    try:
        return msgspec.json.decode(manifest, type=_Manifest).sha256
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError("the manifest cannot be read") from error
