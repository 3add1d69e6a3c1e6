"""Does one stage of a batch: validates its file, asks its requests and records the answers, or publishes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from anyio import BrokenWorkerProcess, CapacityLimiter, to_thread
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.batches import input_file, queue
from app.batches.client import BatchClient
from app.batches.input_file import LineError, Request, Validated
from app.batches.models import Batch, BatchAnswer
from app.batches.publication import publish
from app.completions.background import BackgroundLoad
from app.completions.gateway import Gateway
from app.context import Context
from app.core.child_process import run_in_child
from app.core.database import Database
from app.core.errors import ToqueError, UnavailableError
from app.core.lease import Lease, async_database_retrying, async_heartbeat
from app.core.lease_runner import LeasedTransactions
from app.core.row_writer import Row, RowWriter
from app.core.settings import BaseModelEntry
from app.core.threads import entered_in_thread
from app.files import service as files_service
from app.files.models import File
from app.models.aliases.target import Target

log = logging.getLogger("toque.batches")

_RENEW_SECONDS = 1.0
"""The heartbeat's interval; a cancellation is noticed no later than this."""
_VALIDATION_SECONDS = 900.0
_READ_AT_ONCE = 16
"""Requests that are read from the file at once."""
_SUMS = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")


class Attempt:
    """One attempt at a stage of a batch, which ends when the stage does or when the lease is lost."""

    def __init__(
        self,
        database: Database,
        context: Context,
        gateway: Gateway,
        background: BackgroundLoad,
        processes: CapacityLimiter,
        batch: Batch,
        lease: Lease,
        lease_seconds: float,
    ) -> None:
        self._database = database
        self._context = context
        self._gateway = gateway
        self._background = background
        self._processes = processes
        self._batch = batch
        self._lease = lease
        self._lease_seconds = lease_seconds
        self._transactions = LeasedTransactions(database, lease)
        self._client = BatchClient(gateway, context.project_id, batch.endpoint)
        self._sums: dict[str, int] = {}

    async def run(self) -> None:
        """Do what the batch's status asks for, and leave it to the next stage.

        Raises:
            LeaseLostError: the batch was cancelled, is overdue, or another process has claimed it.
            StorageFullError: the answers cannot be published now.
            UnavailableError: the input file cannot be read now, or the database is away.
        """
        async with async_heartbeat(_RENEW_SECONDS, self._renew):
            if self._batch.status == "validating":
                await self._validate()
            elif self._batch.status == "in_progress":
                await self._ask()
                await self._transactions.write(queue.finalize)
            else:
                await async_database_retrying()(
                    to_thread.run_sync, publish, self._database, self._context, self._batch, self._lease
                )

    def _renew(self) -> None:
        with self._database.writer() as session:
            queue.LEASES.renew(session, self._lease, self._lease_seconds)

    async def _validate(self) -> None:
        """Validate the file, and record that the batch is in progress or that it has failed."""
        file = await self._transactions.read(self._find_file)
        async with entered_in_thread(files_service.content(self._context.storage, file)) as path:
            await self._validate_file(path)

    async def _validate_file(self, path: Path) -> None:
        model = await to_thread.run_sync(input_file.find_model, path)
        try:
            target = await self._gateway.resolve(self._context.project_id, model) if model else None
        except UnavailableError:
            raise
        except ToqueError as error:
            await self._fail(LineError(error.body.code or "", error.body.message, "body.model", 1))
            return
        bases = [weighted.model.base for weighted in target.models] if target else []
        validated = await self._validate_in_child(path, model, bases)
        if model is None or validated.errors:
            await self._fail(*validated.errors)
            return
        await self._transactions.write(partial(queue.begin, model=model, total=validated.requests))

    async def _validate_in_child(
        self, path: Path, model: str | None, bases: list[BaseModelEntry]
    ) -> Validated:
        most_bytes = self._context.settings.max_body_bytes
        try:
            return await run_in_child(
                input_file.validate,
                path,
                self._batch.endpoint,
                model,
                bases,
                most_bytes,
                limiter=self._processes,
                seconds=_VALIDATION_SECONDS,
            )
        except TimeoutError:
            message = "Its validation took too long: split the file, or simplify its requests."
        except BrokenWorkerProcess:
            message = "The process that validated the file died: out of memory?"
        except OSError:
            raise
        except Exception:
            log.exception("%s cannot be validated", self._batch.id)
            message = "An internal error; the service's log has it."
        return Validated(0, [LineError("validation_failed", message)])

    async def _fail(self, *errors: LineError) -> None:
        await self._transactions.write(queue.fail, msgspec.to_builtins(errors))

    async def _ask(self) -> None:
        """Ask what has no answer yet."""
        answered, self._sums = await self._transactions.read(self._find_answered)
        file = await self._transactions.read(self._find_file)
        answers = RowWriter(self._record)
        limiter = await self._find_limiter()
        async with (
            entered_in_thread(files_service.content(self._context.storage, file)) as path,
            asyncio.TaskGroup() as tasks,
        ):
            requests = (each for each in input_file.read_requests(path) if each.number not in answered)
            while some := await to_thread.run_sync(_take, requests):
                for request in some:
                    await limiter.acquire_on_behalf_of(turn := object())
                    task = tasks.create_task(self._answer(request, answers))
                    task.add_done_callback(lambda _, turn=turn: limiter.release_on_behalf_of(turn))

    async def _answer(self, request: Request, answers: RowWriter) -> None:
        await answers.add(await self._client.answer(request))

    async def _find_limiter(self) -> CapacityLimiter:
        return self._background.limiter(await self._find_base())

    async def _find_base(self) -> str:
        try:
            target: Target = await self._gateway.resolve(self._context.project_id, self._batch.model or "")
        except ToqueError:
            return ""  # the model was deleted meanwhile; every request says so
        return target.models[0].model.base_model

    async def _record(self, rows: list[Row]) -> None:
        sums = {
            "completed": self._sums["completed"] + sum(not row["failed"] for row in rows),
            "failed": self._sums["failed"] + sum(row["failed"] for row in rows),
            **{name: self._sums[name] + sum(row[name] for row in rows) for name in _SUMS},
        }
        await self._transactions.write(queue.record_answers, rows, sums)
        self._sums = sums

    def _find_file(self, session: Session) -> File:
        return session.get_one(File, self._batch.input_file_id)

    def _find_answered(self, session: Session) -> tuple[set[int], dict[str, int]]:
        """Return the numbers of the requests that have an answer, and the sums of the answers."""
        of_batch = BatchAnswer.batch_id == self._batch.id
        numbers = set(session.scalars(select(BatchAnswer.number).where(of_batch)))
        columns = [func.coalesce(func.sum(getattr(BatchAnswer, name)), 0) for name in _SUMS]
        sums: Any = session.execute(select(*columns).where(of_batch)).one()
        failed = session.scalar(select(func.count()).where(of_batch, BatchAnswer.failed)) or 0
        counts = {"completed": len(numbers) - failed, "failed": failed}
        return numbers, counts | {name: int(sum_) for name, sum_ in zip(_SUMS, sums, strict=True)}


def _take(requests: Iterator[Request]) -> list[Request]:
    return list(islice(requests, _READ_AT_ONCE))
