"""Rows that many tasks write at once."""

from __future__ import annotations

import asyncio

import pytest

from app.core.row_writer import Row, RowWriter


async def test_every_task_whose_row_was_not_written_hears_of_it() -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()
    written: list[Row] = []

    async def write(rows: list[Row]) -> None:
        if {"number": 0} in rows:
            begun.set()
            await may_end.wait()
            written.extend(rows)
            return
        raise ConnectionError

    writer = RowWriter(write)
    first = asyncio.create_task(writer.add({"number": 0}))
    await begun.wait()
    others = [asyncio.create_task(writer.add({"number": number})) for number in (1, 2)]
    may_end.set()
    await first
    outcomes = await asyncio.gather(*others, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ConnectionError, ConnectionError]
    with pytest.raises(ConnectionError):
        await writer.add({"number": 3})
    assert written == [{"number": 0}]
