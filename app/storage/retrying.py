"""The retry policy of work that waits while the storage is away."""

from __future__ import annotations

import logging
import threading

from tenacity import (
    Retrying,
    before_sleep_log,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
    wait_exponential_jitter,
)

from app.storage.base import StorageUnavailableError

log = logging.getLogger("toque.storage")


def storage_retrying(patience_seconds: float, stopping: threading.Event) -> Retrying:
    """Try a call again while the storage is away, for so long, or until the event is set."""
    return Retrying(
        retry=retry_if_exception_type(StorageUnavailableError),
        stop=stop_after_delay(patience_seconds) | stop_when_event_set(stopping),
        wait=wait_exponential_jitter(multiplier=0.5, max=10),
        sleep=sleep_using_event(stopping),
        before_sleep=before_sleep_log(log, logging.WARNING),
        reraise=True,
    )
