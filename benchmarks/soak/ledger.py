"""The ledger: every job that was ever ordered, and whether database, storage and API agree on its end."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import select

from app.core.database import Database
from app.core.settings import Settings
from app.fine_tuning.models import FINAL_STATUSES, FineTuningJob
from app.fine_tuning.queue import MAX_ATTEMPTS, MAX_WORKERS_LOST
from app.models.adapters.models import Adapter
from app.orphans import find_orphans
from app.storage import open_storage
from app.storage.base import Storage
from benchmarks.soak.customer import BATCH_SIZE, EXAMPLES, Customer, Order
from benchmarks.stand_in_trainer import WEIGHTS_FILE, Progression, untrained
from workers.training.checkpoint import verify

if TYPE_CHECKING:
    from openai import OpenAI

_STEPS_PER_EPOCH = math.ceil(EXAMPLES / BATCH_SIZE)
_ATTEMPT_DIED = re.compile(rf"; attempt \d+ of ({MAX_ATTEMPTS}|{MAX_WORKERS_LOST}) in ")


@dataclass
class Ledger:
    """Counts of jobs, and a line for each thing that is not as it should be."""

    accepted: int = 0
    unanswered: int = 0
    """Jobs whose order was never answered."""
    ended: Counter[str] = field(default_factory=Counter[str])
    failures: Counter[str] = field(default_factory=Counter[str])
    """Number of failed jobs by error code."""
    resumed: int = 0
    """Number of attempts that resumed from a checkpoint."""
    lost: list[str] = field(default_factory=list[str])
    doubled: list[str] = field(default_factory=list[str])
    wrong: list[str] = field(default_factory=list[str])

    @property
    def balanced(self) -> bool:
        return self.accepted == self.ended.total() and not (self.lost or self.doubled or self.wrong)

    def compare(self, what: str, found: Sequence[Any], expected: Sequence[Any]) -> None:
        """Checks that every item appears exactly once, in order."""
        counts = Counter(found)
        self.lost += [f"{what} {one} is missing" for one in expected if one not in counts]
        self.doubled += [f"{what} {one} is there {count} times" for one, count in counts.items() if count > 1]
        self.wrong += [f"{what} {one} should not be there" for one in counts if one not in expected]
        if list(counts) != [one for one in expected if one in counts]:
            self.wrong.append(f"{what}: out of order: {found}")


def audit(settings: Settings, customers: Sequence[Customer]) -> Ledger:
    """Checks everything; no job may be running any more."""
    ledger, storage = Ledger(), open_storage(settings)
    database = Database(settings.sqlalchemy_url)
    jobs: defaultdict[str, list[FineTuningJob]] = defaultdict(list)
    adapters: defaultdict[str, list[Adapter]] = defaultdict(list)
    with database.reader() as session:
        for job in session.scalars(select(FineTuningJob)):
            jobs[(job.job_metadata or {})["token"]].append(job)
        for adapter in session.scalars(select(Adapter).order_by(Adapter.created_at)):
            adapters[adapter.job_id].append(adapter)
        ledger.lost += [f"{key}: not in the storage" for key in find_orphans(session, storage).missing]
    database.dispose()

    for customer in customers:
        client = customer.client.with_options(timeout=60, max_retries=5)
        for order in customer.orders:
            ordered = jobs.pop(order.token, [])
            _check_order(ledger, order, ordered)
            for job in ordered:
                _check_end(ledger, order, job)
                _check_models(ledger, storage, job, adapters.pop(job.id, []))
                _check_record(ledger, client, job)
    ledger.wrong += [f"nobody ordered the job with token {token}" for token in jobs]
    ledger.wrong += [f"{job_id}: adapters without a job" for job_id in adapters]
    return ledger


def _check_order(ledger: Ledger, order: Order, ordered: Sequence[FineTuningJob]) -> None:
    """Checks for one job per answered order, and at most one per unanswered order."""
    ledger.accepted += bool(ordered or order.job_id)
    ledger.unanswered += bool(ordered and not order.job_id)
    if len(ordered) > 1:
        ledger.doubled.append(f"one order, {len(ordered)} jobs: {', '.join(job.id for job in ordered)}")
    if order.job_id and order.job_id not in [job.id for job in ordered]:
        ledger.lost.append(f"{order.job_id}: accepted, and not in the database")


def _check_end(ledger: Ledger, order: Order, job: FineTuningJob) -> None:
    """Checks that the job's state is final, and follows from what happened."""
    if job.hyperparameters["n_epochs"] != order.epochs:
        ledger.wrong.append(f"{job.id}: {order.epochs} epochs were ordered")
    if job.status not in FINAL_STATUSES:
        ledger.lost.append(f"{job.id}: still {job.status}, attempt {job.lease_epoch}")
        return
    ledger.ended[job.status] += 1
    if job.status == "failed":
        code = (job.error or {}).get("code", "none")
        ledger.failures[code] += 1
        enough = {
            "worker_lost": job.workers_lost == MAX_WORKERS_LOST - 1,
            "trainer_died": job.attempts_failed == MAX_ATTEMPTS - 1,
        }
        if not enough.get(code):
            ledger.wrong.append(f"{job.id}: failed too early: {job.error}")
    if (job.status == "cancelled") > order.cancel_asked:
        ledger.wrong.append(f"{job.id}: cancelled, and nobody asked")
    if order.cancel_answered > (job.status == "cancelled"):
        ledger.wrong.append(f"{job.id}: its cancellation was confirmed, and it is {job.status}")


def _check_models(ledger: Ledger, storage: Storage, job: FineTuningJob, adapters: list[Adapter]) -> None:
    """Checks for one model if the job succeeded, a checkpoint per epoch, and an undisturbed job's weights."""
    models: list[str] = []
    checkpoints: list[int] = []
    for adapter in adapters:
        name, _, step = adapter.name.partition(":ckpt-step-")
        if step:
            checkpoints.append(int(step))
        else:
            models.append(name)
        with storage.local(adapter.storage_key) as folder:
            if problem := verify(folder):
                ledger.lost.append(f"{adapter.name}: {problem}")
                continue
            weights = (folder / WEIGHTS_FILE).read_bytes()
        if weights != _undisturbed(job, int(step or _steps(job)))[-1].weights:
            ledger.wrong.append(f"{adapter.name}: other weights than those of an undisturbed job")
    ends = list(range(_STEPS_PER_EPOCH, _recorded(job) + 1, _STEPS_PER_EPOCH))
    if job.status != "succeeded" and ends and ends[-1] == job.recorded_step not in checkpoints:
        ends.pop()  # it ended between the step and its checkpoint
    ledger.compare(f"{job.id}: checkpoint", sorted(checkpoints), ends)
    ledger.compare(f"{job.id}: model", models, [job.fine_tuned_model] if job.status == "succeeded" else [])


def _check_record(ledger: Ledger, client: OpenAI, job: FineTuningJob) -> None:
    """Checks that log and result file have every step once, in order, with an undisturbed job's numbers."""
    events = [*client.fine_tuning.jobs.list_events(job.id, limit=1000)][::-1]
    records = {"log": [cast("dict[str, Any]", event.data) for event in events if event.type == "metrics"]}
    if job.status == "succeeded":
        records["result file"] = _result(client, job)
    expected = _undisturbed(job, _recorded(job))[1:]
    for name, steps in records.items():
        numbers = [int(step["step"]) for step in steps]
        ledger.compare(f"{job.id}: in its {name}, step", numbers, [at.step for at in expected])
        losses = {at.step: at.metrics.train_loss for at in expected}
        if any(float(step["train_loss"]) != losses.get(int(step["step"])) for step in steps):
            ledger.wrong.append(f"{job.id}: in its {name}, other losses than those of an undisturbed job")

    messages = [event.message for event in events]
    ledger.resumed += sum("resumed at step" in message for message in messages)
    claims = sum(message in ("Fine-tuning job started", "Fine-tuning job resumed") for message in messages)
    if claims != job.lease_epoch:
        ledger.wrong.append(f"{job.id}: {job.lease_epoch} attempts, {claims} in its log")
    deaths = sum(_ATTEMPT_DIED.search(message) is not None for message in messages)
    if deaths < (counted := job.attempts_failed + job.workers_lost):  # progress makes an end of counting
        ledger.wrong.append(f"{job.id}: {counted} attempts died, {deaths} in its log")


def _result(client: OpenAI, job: FineTuningJob) -> list[dict[str, Any]]:
    from openai import NotFoundError

    try:
        content = client.files.content(job.result_file_id or "none").text
    except NotFoundError:
        return []
    return [*csv.DictReader(content.splitlines())]


def _steps(job: FineTuningJob) -> int:
    epochs: int = job.hyperparameters["n_epochs"]
    return epochs * _STEPS_PER_EPOCH


def _recorded(job: FineTuningJob) -> int:
    """Returns the last step that must be recorded."""
    return _steps(job) if job.status == "succeeded" else job.recorded_step


def _undisturbed(job: FineTuningJob, steps: int) -> list[Progression]:
    """Returns the state of an undisturbed job after each step, from 0."""
    states = [untrained(job.seed)]
    for _ in range(steps):
        states.append(states[-1].next())
    return states
