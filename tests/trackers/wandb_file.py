"""Reads what W&B has kept offline: a log of protobuf records in LevelDB's log format.

https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FILE_HEADER, _BLOCK = 7, 32 * 1024
_HEADER = struct.Struct("<IHB")
_FULL, _LAST = 1, 4


def read_history(path: Path) -> list[dict[str, Any]]:
    """The metrics of each step, in the order in which they were logged."""
    return [
        {"_".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        | {"_step": record.history.step.num}
        for record in read_records(path)
        if record.WhichOneof("record_type") == "history"
    ]


def read_records(path: Path) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    for content in _contents(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        yield record


def _contents(data: bytes) -> Iterator[bytes]:
    place, parts = _FILE_HEADER, b""
    while place + _HEADER.size <= len(data):
        if (left := _BLOCK - place % _BLOCK) < _HEADER.size:
            place += left
            continue
        _, length, kind = _HEADER.unpack_from(data, place)
        place += _HEADER.size
        parts += data[place : place + length]
        place += length
        if kind in (_FULL, _LAST):
            yield parts
            parts = b""
