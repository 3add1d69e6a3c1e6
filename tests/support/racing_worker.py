"""A process that claims jobs and ends them, as fast as it can, until all have ended.

It says `ready`, waits for a line on stdin, and then names each job that it has ended. After its first one it
waits until another process has ended one, too: all are in the race.
"""

from __future__ import annotations

import sys
import time

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.database import Database
from app.fine_tuning import publication, queue
from app.fine_tuning.claim import claim_next
from app.fine_tuning.models import FINAL_STATUSES, FineTuningJob


def end(session: Session, job: FineTuningJob) -> None:
    """Every second job succeeds."""
    if job.seed % 2:
        queue.fail(session, queue.LEASES.lease_of(job), code="c", message="m", param=None)
    else:
        publication.publish_model(
            session,
            job,
            queue.LEASES.lease_of(job),
            storage_key=f"jobs/{job.id}",
            trained_tokens=1,
            result_file_id=job.training_file_id,
        )


def all_have_ended(database: Database) -> bool:
    unfinished = select(FineTuningJob.id).where(FineTuningJob.status.not_in(FINAL_STATUSES)).limit(1)
    with database.reader() as session:
        return session.scalar(unfinished) is None


def another_takes_part(database: Database, worker: str) -> bool:
    has_ended = FineTuningJob.status.in_(FINAL_STATUSES), FineTuningJob.worker_id != worker
    with database.reader() as session:
        return session.scalar(select(FineTuningJob.id).where(*has_ended).limit(1)) is not None


def main(url: str, worker: str, base_model: str) -> None:
    is_alone = True
    database = Database(url)
    print("ready", flush=True)
    sys.stdin.readline()
    while not all_have_ended(database):
        with database.writer() as session:
            job = claim_next(session, worker, [base_model], 60.0)
        if job is None:
            continue  # the other has taken the last, and ends it
        with database.writer() as session:
            end(session, job)
        print(job.id, flush=True)
        while is_alone and (is_alone := not another_takes_part(database, worker)):
            time.sleep(0.01)
    database.dispose()


if __name__ == "__main__":
    main(*sys.argv[1:])
