"""Counts what was used of quotas in PostgreSQL, so that several gateways overrun none of them.

A request costs one transaction, which writes all of its quotas or none. The tables are UNLOGGED: nothing
waits for the disk, and after a crash of the database the minutes begin anew.
"""

from __future__ import annotations

import asyncio
import logging
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

    @override
    async def take(self, wanted: Sequence[tuple[Quota, int]]) -> Sequence[Taken]:
        # Sorted, since two transactions that lock rows in different orders could wait for each other.
        ordered = sorted(wanted, key=lambda each: each[0].name)
        return await to_thread.run_sync(self._take, ordered, limiter=self._limiter)

    @override
    async def give_back(self, taken: Sequence[tuple[Taken, int]]) -> None:
        ordered = sorted(taken, key=lambda each: each[0].quota.name)
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
        with self._database.writer() as session:
            taken = [self._enter(session, quota) for quota in in_flight]
            return [*taken, *(_take_by_minute(session, by_minute) if by_minute else ())]

    def _enter(self, session: Session, quota: Quota) -> Taken:
        """Count one more request in flight; no other gateway does so until the transaction ends."""
        advisory_lock(session, quota.name)
        table = RequestsInFlight
        counted = select(func.coalesce(func.sum(table.count), 0)).where(
            table.name == quota.name, table.alive_until > database_now()
        )
        used = int(session.scalar(counted) or 0)
        if used >= quota.most:
            raise ExhaustedError(quota, 1, used, 0.0)
        row = {
            "name": quota.name,
            "gateway_id": self._gateway_id,
            "project_id": quota.project_id,
            "count": 1,
            "alive_until": database_now() + _ALIVE_SECONDS,
        }
        statement = insert(table).values(row)
        session.execute(
            statement.on_conflict_do_update(
                index_elements=["name", "gateway_id"],
                set_={"count": table.count + 1, "alive_until": statement.excluded.alive_until},
            )
        )
        return Taken(quota, 1, used + 1, 0.0, 0.0)

    def _give_back(self, taken: Sequence[tuple[Taken, int]]) -> None:
        flights, windows = RequestsInFlight, RateWindow
        with self._database.writer() as session:
            for each, amount in taken:
                if each.quota.kind == "concurrent_requests":
                    own = flights.name == each.quota.name, flights.gateway_id == self._gateway_id
                    session.execute(update(flights).where(*own).values(count=flights.count - amount))
                else:
                    same = windows.name == each.quota.name, windows.ends_at == each.window
                    session.execute(update(windows).where(*same).values(used=windows.used - amount))

    def _renew(self) -> None:
        table, now = RequestsInFlight, database_now()
        with self._database.writer() as session:
            session.execute(delete(table).where(table.alive_until < now - _ALIVE_SECONDS))
            own = table.gateway_id == self._gateway_id, table.count > 0
            session.execute(update(table).where(*own).values(alive_until=now + _ALIVE_SECONDS))


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
    if row is None:
        raise ExhaustedError(quota, amount, 0, quotas.WINDOW_SECONDS)
    raise ExhaustedError(quota, amount, row[0], row[1])
