"""Which base models are asked for, which decides what engines run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping

from anyio import to_thread

from app.completions import service
from app.completions.replica import Replica
from app.core.database import Database, new_id

_EVERY_SECONDS = 5.0


class Demand:
    """The base models that this gateway was asked for. Each is written down once in a few seconds."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._gateway_id = new_id("gateway_")
        self._unwritten: set[str] = set()
        self._due_at: dict[str, float] = {}
        """By base model: when it is to be written down again."""

    def note(self, base_model: str) -> None:
        """Notes that a base model is asked for; `record` writes it down."""
        self._unwritten.add(base_model)

    async def record(self, replicas: Iterable[Replica]) -> None:
        """Writes down which base models are asked for or answering, and were not written a moment ago."""
        in_flight = Counter[str]()
        for replica in replicas:
            in_flight[replica.address.base_model] += replica.in_flight
        self._unwritten |= (+in_flight).keys()
        now = time.monotonic()
        due = {name for name in self._unwritten if now >= self._due_at.get(name, now)}
        if due:
            self._unwritten -= due
            self._due_at |= dict.fromkeys(due, now + _EVERY_SECONDS)
            await to_thread.run_sync(self._write, {name: in_flight[name] for name in due})

    def _write(self, in_flight: Mapping[str, int]) -> None:
        with self._database.writer() as session:
            service.record_demand(session, self._gateway_id, in_flight)
