"""Keeps the tracker's secrets out of the log: its library's errors and own lines name whole addresses."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator

from typing_extensions import override
from yarl import URL

_USER_INFO = re.compile(r"(?<=://)[^/\s@]*@")


class RedactedFormatter(logging.Formatter):
    """Formats as another formatter does, without these secrets and without what logs in to an address."""

    def __init__(self, formatter: logging.Formatter, secrets: Iterable[str]) -> None:
        super().__init__()
        self._formatter = formatter
        parts = {part for secret in secrets for part in _parts(secret) if part}
        self._secrets = sorted(parts, key=len, reverse=True)

    @override
    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with `***` for each secret."""
        line = _USER_INFO.sub("***@", self._formatter.format(record))
        for secret in self._secrets:
            line = line.replace(secret, "***")
        return line


def redact_log(secrets: Iterable[str]) -> None:
    """Leave these secrets out of whatever this process logs from now on."""
    values = list(secrets)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(RedactedFormatter(handler.formatter or logging.Formatter(), values))


def _parts(secret: str) -> Iterator[str]:
    """Yield what is secret in it: of an address, the password and the query; of anything else, all."""
    if "://" not in secret:
        yield secret
        return
    try:
        url = URL(secret)
    except ValueError:
        yield secret
        return
    yield url.password or ""
    yield url.raw_password or ""
    yield from url.query.values()
    yield url.raw_query_string
