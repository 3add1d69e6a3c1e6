"""Compares models with an engine's answers that were published while no engine could be asked."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.core.database import Database
from app.core.settings import Settings
from app.files.models import File
from app.fine_tuning import queue
from app.fine_tuning.models import FineTuningJob
from app.models.adapters import service as adapters_service
from app.models.adapters.models import UNVERIFIED, Adapter
from app.storage.base import Storage, StorageUnavailableError
from workers.training.parity import NoAnswerError, ParityError, compare, find_engine
from workers.training.protocol import Sample


def keep_samples(storage: Storage, job: FineTuningJob, samples: Sequence[Sample]) -> None:
    """Store the samples of a model, for `verify_one` to compare later."""
    storage.write(_samples_key(job), msgspec.json.encode(samples))


def verify_one(database: Database, storage: Storage, settings: Settings, base_models: Sequence[str]) -> None:
    """Compare one unverified model, if an engine of its base model answers; quarantine it if that fails.

    Any worker may do it at any time.
    """
    with database.reader() as session:
        found = _find_unverified(session, base_models)
        if found is None:
            return
        adapter, job = found
        training_file = session.get_one(File, job.learnt_file_id)
        try:
            engine = find_engine(session, settings, adapter.base_model)
        except NoAnswerError:
            return
    try:
        with storage.open(_samples_key(job)) as file, storage.local(training_file.storage_key) as path:
            samples = msgspec.json.decode(file.read(), type=list[Sample])
            compared = compare(engine, adapter.name, path, samples)
    except FileNotFoundError:  # its samples or its file are gone
        parity, verdict, level = {"tokens": 0}, "Not compared with an engine's answers", "warn"
    except (NoAnswerError, StorageUnavailableError):
        return
    except ParityError as error:
        parity, verdict, level = None, str(error), "error"
    else:
        parity, verdict, level = msgspec.to_builtins(compared), str(compared), "info"
    with database.writer() as session:
        is_new = (
            adapters_service.record_parity(session, adapter.name, parity)
            if parity
            else adapters_service.quarantine(session, adapter.name, verdict)
        )
        if is_new:
            queue.add_event(session, job.id, verdict, level=level)


def _find_unverified(session: Session, base_models: Sequence[str]) -> tuple[Adapter, FineTuningJob] | None:
    """Select one at random, so that a model that cannot be compared does not hold up the others."""
    query = (
        select(Adapter, FineTuningJob)
        .join(FineTuningJob, FineTuningJob.fine_tuned_model == Adapter.name)
        .where(*UNVERIFIED, Adapter.base_model.in_(base_models))
        .order_by(func.random())
        .limit(1)
    )
    row = session.execute(query).first()
    return (row[0], row[1]) if row else None


def _samples_key(job: FineTuningJob) -> str:
    return f"jobs/{job.id}/{job.lease_epoch}/samples.json"
