"""A heartbeat: something done again and again on a thread of its own, while a block runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from app.fine_tuning.queue import LeaseLostError

log = logging.getLogger("toque.worker")


class Heartbeat:
    """Calls `beat` at once and then every `interval` seconds.

    A beat that finds the lease lost calls `on_lost`, once, and is the last; one that fails because of
    the database is logged, and the next is tried.
    """

    def __init__(
        self,
        interval: float,
        beat: Callable[[], None],
        on_lost: Callable[[LeaseLostError], None] | None = None,
    ) -> None:
        self._interval = interval
        self._beat = beat
        self._on_lost = on_lost
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                self._beat()
            except LeaseLostError as lost:
                if self._on_lost is not None and not self._ended.is_set():
                    self._on_lost(lost)
                return
            except SQLAlchemyError as error:
                log.warning("heartbeat: %s", error)
            if self._ended.wait(self._interval):
                return
