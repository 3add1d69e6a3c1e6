"""Counts what was used of quotas in PostgreSQL, so that several gateways overrun none of them.

A request costs one transaction, which writes all of its quotas or none. The tables are UNLOGGED: nothing
waits for the disk, and after a crash of the database the minutes begin anew.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Sequence
from typing import NoReturn

from anyio import CapacityLimiter, to_thread
from sqlalchemy import case, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from typing_extensions import override

from app.core.database import Database, advisory_lock, database_now, new_id
from app.limits import quota as quotas
from app.limits.models import RateWindow, RequestsInFlight
from app.limits.quota import ExhaustedError, Quota, Taken
from app.limits.store import Store

log = logging.getLogger("toque.limits")

_TRANSACTIONS_AT_ONCE = 8
_RENEW_SECONDS = 20.0
_ALIVE_SECONDS = 60.0
"""How long the requests of a gateway that does not renew them still count."""


class SharedStore(Store):
    """The store that all gateways of a PostgreSQL database share."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._gateway_id = new_id("gateway_")
        self._limiter = CapacityLimiter(_TRANSACTIONS_AT_ONCE)
        self._lock = threading.Lock()
        self._in_flight: Counter[str] = Counter()
        """By quota, this gateway's requests. Its row is a copy of this, so a failed write leaks nothing."""

    @override
    async def take(self, wanted: Sequence[tuple[Quota, int]]) -> Sequence[Taken]:
        ordered = sorted(wanted, key=lambda each: _lock_order(each[0]))
        return await to_thread.run_sync(self._take, ordered, limiter=self._limiter)

    @override
    async def give_back(self, taken: Sequence[tuple[Taken, int]]) -> None:
        ordered = sorted(taken, key=lambda each: _lock_order(each[0].quota))
        for each, amount in ordered:
            if each.quota.kind == "concurrent_requests":
                self._count(each.quota.name, -amount)
        await to_thread.run_sync(self._give_back, ordered, limiter=self._limiter)

    @override
    async def run(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            try:
                await to_thread.run_sync(self._renew, limiter=self._limiter)
            except SQLAlchemyError as error:
                log.warning("requests in flight cannot be renewed yet: %s", type(error).__name__)

    def _take(self, wanted: Sequence[tuple[Quota, int]]) -> Sequence[Taken]:
        in_flight = [quota for quota, _ in wanted if quota.kind == "concurrent_requests"]
        by_minute = [each for each in wanted if each[0].kind != "concurrent_requests"]
        entered: list[Taken] = []
        try:
            with self._database.writer() as session:
                for quota in in_flight:
                    entered.append(self._enter(session, quota))  # noqa: PERF401 - needed if one raises
                return [*entered, *(_take_by_minute(session, by_minute) if by_minute else ())]
        except BaseException:
            for each in entered:
                self._count(each.quota.name, -1)
            raise

    def _enter(self, session: Session, quota: Quota) -> Taken:
        """Count one more request in flight; no other gateway does so until the transaction ends."""
        advisory_lock(session, quota.name)
        table = RequestsInFlight
        others = select(func.coalesce(func.sum(table.count), 0)).where(
            table.name == quota.name,
            table.gateway_id != self._gateway_id,
            table.alive_until > database_now(),
        )
        used = int(session.scalar(others) or 0) + self._in_flight[quota.name]
        if used >= quota.most:
            raise ExhaustedError(quota, 1, used, 0.0)
        statement = insert(table).values(
            name=quota.name,
            gateway_id=self._gateway_id,
            project_id=quota.project_id,
            count=self._in_flight[quota.name] + 1,
            alive_until=database_now() + _ALIVE_SECONDS,
        )
        added = statement.excluded
        session.execute(
            statement.on_conflict_do_update(
                index_elements=["name", "gateway_id"],
                set_={"count": added.count, "alive_until": added.alive_until},
            )
        )
        self._count(quota.name, 1)
        return Taken(quota, 1, used + 1, 0.0, 0.0)

    def _give_back(self, taken: Sequence[tuple[Taken, int]]) -> None:
        windows = RateWindow
        with self._database.writer() as session:
            for each, amount in taken:
                if each.quota.kind == "concurrent_requests":
                    self._write_in_flight(session, each.quota.name)
                else:
                    same = windows.name == each.quota.name, windows.ends_at == each.window
                    session.execute(update(windows).where(*same).values(used=windows.used - amount))

    def _renew(self) -> None:
        table, now = RequestsInFlight, database_now()
        with self._database.writer() as session:
            session.execute(delete(table).where(table.alive_until < now - _ALIVE_SECONDS))
        with self._database.reader() as session:
            own = table.gateway_id == self._gateway_id, table.count > 0
            names = session.scalars(select(table.name).where(*own)).all()
        for name in names:
            with self._database.writer() as session:
                self._write_in_flight(session, name)

    def _write_in_flight(self, session: Session, name: str) -> None:
        """Tell the other gateways how many requests of a quota are in flight here."""
        advisory_lock(session, name)  # what is read next is then not written over by an older number
        own = RequestsInFlight.name == name, RequestsInFlight.gateway_id == self._gateway_id
        alive_until = database_now() + _ALIVE_SECONDS
        session.execute(
            update(RequestsInFlight).where(*own).values(count=self._in_flight[name], alive_until=alive_until)
        )

    def _count(self, name: str, change: int) -> None:
        with self._lock:
            self._in_flight[name] += change
            if not self._in_flight[name]:
                del self._in_flight[name]


def _lock_order(quota: Quota) -> tuple[bool, str]:
    """Return the key by which all transactions order their locks, so that none wait for each other."""
    return quota.kind != "concurrent_requests", quota.name


def _take_by_minute(session: Session, wanted: Sequence[tuple[Quota, int]]) -> Sequence[Taken]:
    table, now = RateWindow, database_now()
    rows = [
        {
            "name": quota.name,
            "project_id": quota.project_id,
            "most": quota.most,
            "used": amount,
            "ends_at": now + quotas.WINDOW_SECONDS,
        }
        for quota, amount in wanted
    ]
    for quota, amount in wanted:
        if amount > quota.most:
            _refuse(session, [(quota, amount)])
    statement = insert(table).values(rows)
    added, is_over = statement.excluded, table.ends_at <= now
    statement = statement.on_conflict_do_update(
        index_elements=["name"],
        set_={
            "most": added.most,
            "used": case((is_over, added.used), else_=table.used + added.used),
            "ends_at": case((is_over, added.ends_at), else_=table.ends_at),
        },
        where=or_(is_over, table.used + added.used <= added.most),
    ).returning(table.name, table.used, table.ends_at, table.ends_at - now)
    found = {row[0]: row for row in session.execute(statement)}
    if len(found) < len(wanted):
        _refuse(session, [each for each in wanted if each[0].name not in found])
    rows_of = [(quota, amount, found[quota.name]) for quota, amount in wanted]
    return [Taken(quota, amount, row[1], row[3], row[2]) for quota, amount, row in rows_of]


def _refuse(session: Session, wanted: Sequence[tuple[Quota, int]]) -> NoReturn:
    """Raise the error of the first of these quotas, which have no room."""
    quota, amount = wanted[0]
    left = (RateWindow.ends_at - database_now()).label("seconds_left")
    row = session.execute(
        select(RateWindow.used, left).where(RateWindow.name == quota.name, left > 0)
    ).first()
    if row is None:  # the minute is over, perhaps since it was found to be used up
        left_of_none = quotas.WINDOW_SECONDS if amount > quota.most else 0.0
        raise ExhaustedError(quota, amount, 0, left_of_none)
    raise ExhaustedError(quota, amount, row[0], row[1])
