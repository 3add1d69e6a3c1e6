"""A safetensors file, read without its library: what is in it, and whether its numbers are plausible.

The service has neither torch nor numpy, and an engine must not load what nobody looked at.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from functools import cache
from typing import Annotated, BinaryIO, NamedTuple

import msgspec

_LARGEST_HEADER = 32 * 2**20
_CHUNK = 2**20
_WITHOUT_SIGN = bytes(top & 0x7F for top in range(256))

Size = Annotated[int, msgspec.Meta(ge=0)]
FLOATS = {"F32": 4, "F16": 2, "BF16": 2}
"""The types that adapters are saved in, with their bytes."""


class DamagedWeightsError(ValueError):
    """The file is not safetensors, or not all of it; the message says what is wrong."""


class Tensor(NamedTuple):
    """Where a tensor's numbers are in the file, and what they are."""

    dtype: str
    shape: list[int]
    start: int
    end: int


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[Size]
    data_offsets: tuple[Size, Size]


_entries = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_tensors(file: BinaryIO) -> dict[str, Tensor]:
    """The file's tensors by name, which fill it from the header to the end without a gap.

    Raises:
        DamagedWeightsError: the header is broken, or does not fit what follows it.
    """
    size = os.fstat(file.fileno()).st_size
    head = file.read(9)
    begin = 8 + int.from_bytes(head[:8], "little")
    if head[8:] != b"{" or begin > size or begin > _LARGEST_HEADER:
        is_pickle = head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
        raise DamagedWeightsError(
            "it is a pickle, which may run code and is never loaded"
            if is_pickle
            else "it has no header, or ends within it"
        )
    try:
        header = _entries.decode(head[8:] + file.read(begin - 9))
        msgspec.json.decode(header.pop("__metadata__", b"{}"), type=dict[str, str])
        entries = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in header.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedWeightsError(f"its header cannot be read: {error}") from error
    tensors = {
        name: Tensor(entry.dtype, entry.shape, begin + entry.data_offsets[0], begin + entry.data_offsets[1])
        for name, entry in entries.items()
    }
    _check_layout(tensors, begin, size)
    return tensors


def is_plausible(file: BinaryIO, tensor: Tensor, largest: float) -> bool:
    """Whether all of the tensor's numbers are finite, and none is above `largest` (to a factor of four).

    Its type must be one of `FLOATS`.

    Raises:
        DamagedWeightsError: the file ends before the tensor does.
    """
    plausible = _plausible_tops(tensor.dtype, largest)
    return not any(tops.translate(None, plausible) for tops in _tops(file, tensor))


def largest_number(file: BinaryIO, tensor: Tensor) -> float:
    """Return the size of the tensor's largest number, to a factor of four downwards; its numbers are finite.

    Raises:
        DamagedWeightsError: the file ends before the tensor does.
    """
    top = max((max({*tops.translate(_WITHOUT_SIGN)}) for tops in _tops(file, tensor)), default=0)
    return _number(tensor.dtype, 0, top)


def _tops(file: BinaryIO, tensor: Tensor) -> Iterator[bytes]:
    """Yield the top byte of each number, some at once: its sign, and all but the last bit of its exponent."""
    width = FLOATS[tensor.dtype]
    file.seek(tensor.start)
    left = tensor.end - tensor.start
    while left:
        chunk = file.read(min(left, _CHUNK))
        if not chunk or len(chunk) % width:
            raise DamagedWeightsError("it ends before its last tensor does")
        yield chunk[width - 1 :: width]
        left -= len(chunk)


@cache
def _plausible_tops(dtype: str, largest: float) -> bytes:
    """The top bytes, of either sign, that no infinity, NaN or enormous number has."""
    tops = [
        top
        for top in range(128)
        if math.isfinite(_number(dtype, 0xFF, top)) and _number(dtype, 0, top) <= largest
    ]
    return bytes(tops + [top | 0x80 for top in tops])


def _number(dtype: str, low: int, top: int) -> float:
    """The number whose highest byte is `top`, and whose others are `low`."""
    layout, rest = ("<e", 1) if dtype == "F16" else ("<f", 3)  # BF16 is the upper half of F32
    return struct.unpack(layout, bytes([low] * rest + [top]))[0]


def _check_layout(tensors: dict[str, Tensor], begin: int, size: int) -> None:
    position = begin
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        length = math.prod(tensor.shape) * FLOATS.get(tensor.dtype, 0)
        if tensor.start != position or tensor.end < tensor.start:
            raise DamagedWeightsError(f"{name[:200]!r} does not begin where the tensor before it ends")
        if tensor.dtype in FLOATS and tensor.end - tensor.start != length:
            raise DamagedWeightsError(f"{name[:200]!r} is not as long as its shape says")
        position = tensor.end
    if position != size:
        raise DamagedWeightsError(f"it has {size:,} bytes, and its header describes {position:,}")
