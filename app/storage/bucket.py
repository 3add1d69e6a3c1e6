"""The bucket of S3, of Google or of Azure that obstore opens, and what its errors become."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal, cast

import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store, from_url

from app.storage.base import StorageUnavailableError

log = logging.getLogger("toque.storage")

Bucket = S3Store | GCSStore | AzureStore

_TIMEOUTS = {"connect_timeout": "3s", "read_timeout": "20s", "timeout": "6h"}
_RETRIES = {"max_retries": 3, "retry_timeout": timedelta(seconds=15)}


def open_bucket(url: str) -> Bucket:
    """Open the bucket of a URL (`s3://bucket/prefix`), with what else is needed from the environment.

    Raises:
        ValueError: the URL or the environment is not what obstore needs.
    """
    insecure = any(os.environ.get(f"{cloud}_ALLOW_HTTP", "").lower() == "true" for cloud in ("AWS", "AZURE"))
    try:
        opened = from_url(url, client_options={**_TIMEOUTS, "allow_http": insecure}, retry_config=_RETRIES)  # type: ignore[call-overload]
    except BaseError as error:
        raise ValueError(f"{url} cannot be opened: {error}") from error
    return cast(Bucket, opened)


def sign_url(bucket: Bucket, key: str, method: Literal["GET", "PUT"], seconds: int) -> str | None:
    """Return a URL that lets anybody use the method on an object; None if the credentials cannot sign one."""
    try:
        return obstore.sign(bucket, method, key, timedelta(seconds=seconds))
    except (BaseError, OSError) as error:
        log.warning("no URL can be signed: %s", _first_line(error))
        return None


@contextmanager
def reaching() -> Generator[None]:
    """Turn obstore's errors into ours; that of a missing object stays a `FileNotFoundError`."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (BaseError, OSError) as error:
        log.warning("the bucket cannot be used now: %s", _first_line(error))
        raise StorageUnavailableError from error  # callers are not told of addresses


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:500]
