"""Multipart uploads, written to storage as they arrive, so that no file is ever whole in memory or copied.

The framework's own form parsing would spool each file to a temporary place and copy it afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fastapi.concurrency import run_in_threadpool
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from app.core.errors import InvalidRequestError, TooLargeError, UnavailableError, UnsupportedMediaTypeError

_MAX_FIELD_BYTES = 4096
_MAX_FIELDS = 32
_BLOCK_BYTES = 2**20


class Writable(Protocol):
    """What the bytes of a file are written to."""

    def write(self, chunk: bytes, /) -> None:
        """Append the chunk."""
        ...


class _Sink:
    """Writes a file in a thread, one block while the next arrives.

    Blocks are large, because after each the thread has to wait for the GIL, which the event loop holds.
    """

    def __init__(self, file: Writable) -> None:
        self._file = file
        self._chunks: list[memoryview] = []
        self._gathered = 0
        self._writing: asyncio.Task[None] | None = None
        self.bytes = 0

    def add(self, chunk: memoryview) -> None:
        """Add bytes that have just arrived."""
        self._chunks.append(chunk)
        self._gathered += len(chunk)
        self.bytes += len(chunk)

    async def hand_over(self, at_least: int = _BLOCK_BYTES) -> None:
        """Start writing the gathered bytes, if they are a block, after the block before them is written."""
        if self._gathered < at_least:
            return
        block = b"".join(self._chunks)
        self._chunks.clear()
        self._gathered = 0
        await self.settle()
        self._writing = asyncio.create_task(run_in_threadpool(self._file.write, block))

    async def settle(self) -> None:
        """Wait for the block that is being written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing


@dataclass
class UploadForm:
    """The text fields of a form and the names of its files, whose contents are written to `files`."""

    files: Mapping[str, Writable]
    """The files by the name of their part; each part must come once."""
    max_file_bytes: int
    limit_name: str = "TOQUE_MAX_FILE_BYTES"
    """The name of the limit in the message that it was exceeded."""
    fields: dict[str, str] = field(default_factory=dict[str, str])
    filenames: dict[str, str] = field(default_factory=dict[str, str])
    """The client's name for each file, by the name of its part."""

    _header_name: bytearray = field(default_factory=bytearray)
    _header_value: bytearray = field(default_factory=bytearray)
    _disposition: bytes = b""
    _part_name: str = ""
    _sinks: dict[str, _Sink] = field(default_factory=dict[str, _Sink])
    _sink: _Sink | None = None
    _part: bytearray = field(default_factory=bytearray)
    _complete: bool = False

    async def receive(self, content_type: str, body: AsyncIterator[bytes]) -> None:
        """Read the whole body.

        Raises:
            UnsupportedMediaTypeError: the body is not multipart/form-data.
            InvalidRequestError: the multipart body is broken, or lacks a file.
            TooLargeError: a file is larger than the limit.
            UnavailableError: the client has hung up.
        """
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data":
            raise UnsupportedMediaTypeError(
                f"Send multipart/form-data, with a file in {self._expected}.",
                code="unsupported_media_type",
            )
        if not boundary:
            raise InvalidRequestError(
                "The content type names no multipart boundary.", code="invalid_multipart"
            )
        try:
            parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
            async for chunk in body:
                parser.write(chunk)
                if self._sink is not None:
                    await self._sink.hand_over()
            for sink in self._sinks.values():
                await sink.hand_over(1)
        except FormParserError as error:
            raise InvalidRequestError(
                f"The multipart body is broken: {error}", code="invalid_multipart"
            ) from error
        except ClientDisconnect:
            raise UnavailableError("The client has hung up; nothing was kept.", code="client_gone") from None
        finally:
            for sink in self._sinks.values():
                await sink.settle()
        if not self._complete:
            raise InvalidRequestError(
                "The multipart body ends before its last boundary.", code="invalid_multipart"
            )
        for name in self.files:
            if name not in self.filenames:
                raise InvalidRequestError(
                    f"Missing required parameter '{name}', a file.",
                    code="missing_required_parameter",
                    param=name,
                )

    @property
    def _expected(self) -> str:
        return " and ".join(f"'{name}'" for name in self.files)

    def _on_part_begin(self) -> None:
        self._disposition = b""
        self._part.clear()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if bytes(self._header_name).lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._part_name = _text(options.get(b"name", b""))
        self._sink = None
        if self._part_name not in self.files:
            if len(self.fields) >= _MAX_FIELDS:
                raise InvalidRequestError("The form has too many fields.", code="invalid_multipart")
            return
        name = self._part_name
        if name in self.filenames:
            raise InvalidRequestError(
                f"Send one '{name}' part, not several.", code="invalid_multipart", param=name
            )
        if b"filename" not in options:
            raise InvalidRequestError(f"The part '{name}' is not a file.", code="invalid_type", param=name)
        self.filenames[name] = _text(options[b"filename"])
        self._sink = self._sinks[name] = _Sink(self.files[name])

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._sink is None:
            if len(self._part) + end - start > _MAX_FIELD_BYTES:
                raise InvalidRequestError(
                    f"The field is longer than {_MAX_FIELD_BYTES} bytes; files are sent as {self._expected}.",
                    code="invalid_value",
                    param=self._part_name,
                )
            self._part += data[start:end]
            return
        self._sink.add(memoryview(data)[start:end])
        if self._sink.bytes > self.max_file_bytes:
            raise TooLargeError(
                f"The file is larger than {self.max_file_bytes:,} bytes ({self.limit_name}).",
                code="file_too_large",
                param=self._part_name,
            )

    def _on_part_end(self) -> None:
        if self._sink is None:
            self.fields[self._part_name] = _text(bytes(self._part))

    def _on_end(self) -> None:
        self._complete = True


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
