"""A customer: the official client over real HTTP, ordering jobs, changing its mind, keeping receipts."""

from __future__ import annotations

import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.fine_tuning.models import FINAL_STATUSES
from benchmarks.soak.deployment import BASE_MODEL

if TYPE_CHECKING:
    from openai import OpenAI

EXAMPLES, BATCH_SIZE = 24, 6
TRAINING_FILE = b"".join(
    b'{"messages":[{"role":"user","content":"%d?"},{"role":"assistant","content":"%d."}]}\n' % (n, n)
    for n in range(EXAMPLES)
)
_OPEN_JOBS = 6
"""Open jobs at which a customer orders no more."""
_PAUSE_SECONDS = (0.1, 0.6)
_ANSWER_SECONDS = 4.0
"""A customer hangs up after that, and its client asks again: shorter than the API may be frozen."""
_ENDED = {"job_succeeded", "job_failed", "job_cancelled"}


@dataclass(slots=True)
class Order:
    """One call to create a job."""

    token: str
    """Value in the job's metadata that identifies the call, whether or not it was answered."""
    epochs: int
    job_id: str | None = None
    """Id of the job; None if no answer came, though there may be a job."""
    cancel_asked: bool = False
    cancel_answered: bool = False


class Customer:
    """One thread with a client of its own, which asks again as it does by default, or never does."""

    def __init__(self, address: str, key: str, *, patient: bool) -> None:
        from openai import DEFAULT_MAX_RETRIES, OpenAI

        self.client: OpenAI = OpenAI(
            base_url=f"{address}/v1",
            api_key=key,
            timeout=_ANSWER_SECONDS,
            max_retries=DEFAULT_MAX_RETRIES if patient else 0,
        )
        self.orders: list[Order] = []
        self.refusals: Counter[str] = Counter()
        """Errors of calls that failed in spite of the client's own retries."""
        self._file_id: str | None = None
        self._open: list[Order] = []

    @contextmanager
    def ordering(self) -> Generator[None]:
        """Orders until the block ends, and waits for the last answer."""
        leaving = threading.Event()
        thread = threading.Thread(target=self._order, args=[leaving], name="customer")
        thread.start()
        try:
            yield
        finally:
            leaving.set()
            thread.join()

    def resume_all(self) -> None:
        """Lets every paused job of its project go on."""
        jobs = self.client.fine_tuning.jobs
        self._call(
            lambda: [jobs.resume(job.id) for job in jobs.list(limit=100) if str(job.status) == "paused"]
        )

    def _order(self, leaving: threading.Event) -> None:
        while not leaving.wait(random.uniform(*_PAUSE_SECONDS)):
            if self._file_id is None or random.random() < 0.05:
                self._call(self._upload)
            self._call(self._look)
            if self._file_id is not None and len(self._open) < _OPEN_JOBS:
                self._call(self._create)
            if self._open and random.random() < 0.5:
                self._call(random.choices((self._cancel, self._pause, self._resume), (1, 2, 4))[0])

    def _call(self, action: Callable[[], object]) -> None:
        """Keeps count of what was refused; that a job has ended by then is no refusal."""
        from openai import APIConnectionError, APIError, APIStatusError

        try:
            action()
        except APIError as error:
            if error.code not in _ENDED:
                name = "connection" if isinstance(error, APIConnectionError) else str(error.code or error)
                status = f"{error.status_code} " if isinstance(error, APIStatusError) else ""
                self.refusals[status + name] += 1

    def _upload(self) -> None:
        file = self.client.files.create(file=("soak.jsonl", TRAINING_FILE), purpose="fine-tune")
        self._file_id = file.id

    def _create(self) -> None:
        assert self._file_id is not None
        order = Order(uuid.uuid4().hex, random.randint(5, 12))
        self.orders.append(order)
        job = self.client.fine_tuning.jobs.create(
            model=BASE_MODEL,
            training_file=self._file_id,
            metadata={"token": order.token},
            method={
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": order.epochs, "batch_size": BATCH_SIZE}},
            },
        )
        order.job_id = job.id
        self._open.append(order)

    def _look(self) -> None:
        """Looks at some of the open jobs."""
        for order in random.sample(self._open, min(3, len(self._open))):
            job = self.client.fine_tuning.jobs.retrieve(order.job_id or "")
            if job.status in FINAL_STATUSES:
                self._open.remove(order)

    def _cancel(self) -> None:
        order = random.choice(self._open)
        order.cancel_asked = True
        job = self.client.fine_tuning.jobs.cancel(order.job_id or "")
        order.cancel_answered = job.status == "cancelled"

    def _pause(self) -> None:
        self.client.fine_tuning.jobs.pause(random.choice(self._open).job_id or "")

    def _resume(self) -> None:
        """Resumes a job; changes nothing unless it is paused."""
        self.client.fine_tuning.jobs.resume(random.choice(self._open).job_id or "")
