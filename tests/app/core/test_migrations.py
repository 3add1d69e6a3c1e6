"""Migrations give exactly the schema that the models describe, and keep what is there, on both databases."""

from __future__ import annotations

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, MetaData, Table, inspect, select

from app.core import migrations
from app.core.database import Base, Database
from app.core.lease import Lease
from app.core.migrations import upgrade
from app.core.settings import Settings
from app.fine_tuning import queue
from app.fine_tuning.claim import claim_next
from app.fine_tuning.models import Event, FineTuningJob
from app.models.adapters import service as adapters_service
from app.storage import open_storage
from tests.support.command import run
from tests.support.databases import configuration, downgrade, remove_tables
from tests.support.jobs import create
from tests.support.service import API_KEY, BASE_MODEL, run_service
from tests.support.training_files import training_bytes
from tests.support.waiting import wait_until
from workers.training.attempt_files import AttemptFiles
from workers.training.protocol import Checkpoint, Finished, Hyperparameters, Metrics, Started, Step
from workers.training.reporter import JobReporter

REVISIONS = [script.revision for script in ScriptDirectory.from_config(configuration("")).walk_revisions()][
    ::-1
]
"""Oldest first; a new one is tested without a change here, once `rows` knows its tables and columns."""


def test_the_models_and_the_migrations_agree(database_url: str) -> None:
    command.check(configuration(database_url))
    upgrade(database_url)  # again: nothing to do


def test_the_files_are_named_in_the_order_in_which_they_follow_each_other() -> None:
    assert list(migrations.revisions()) == REVISIONS


def test_down_and_up_again(database_url: str) -> None:
    downgrade(database_url, "base")
    database = Database(database_url)
    assert set(inspect(database.engine).get_table_names()) <= {"alembic_version"}
    upgrade(database_url)
    assert set(inspect(database.engine).get_table_names()) == {*Base.metadata.tables, "alembic_version"}
    database.dispose()


MODEL = f"ft:{BASE_MODEL}:default:soup:done"
CHECKPOINT = f"{MODEL}:ckpt-step-3"
HYPERPARAMETERS = {
    "n_epochs": 3,
    "batch_size": 4,
    "learning_rate_multiplier": 1.0,
    "learning_rate": 1e-3,
    "lora_rank": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "warmup_ratio": 0.05,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "max_length": 2048,
}


def rows(now: float) -> dict[str, list[dict[str, Any]]]:
    """What a deployment has in its tables; of each row, a revision takes the columns that it has."""
    project = {"project_id": "proj_1"}
    file = project | {"purpose": "fine-tune", "bytes": len(training_bytes()), "sha256": "0" * 64}
    job = project | {
        "model": BASE_MODEL,
        "training_file_id": "file-1",
        "seed": 2**31 - 1,
        "method": "supervised",
        "hyperparameters": HYPERPARAMETERS,
        "lease_epoch": 0,
    }
    running = job | {"status": "running", "started_at": now - 60, "worker_id": "worker_1"}
    finished = job | {"started_at": now - 900, "finished_at": now - 600, "lease_epoch": 1}
    adapter = project | {"job_id": "ftjob-done", "base_model": BASE_MODEL, "created_at": now - 600}
    reply = {"comparison_id": "cmp_1", "question": 0, "candidate": 0, "text": "Leek."}
    reply |= {"input_tokens": 5, "output_tokens": 2, "seconds": 0.1}
    tokens = {"input_tokens": 5, "cached_tokens": 0, "output_tokens": 2, "reasoning_tokens": 0}
    event = {"job_id": "ftjob-done", "created_at": now - 600, "level": "info"}
    return {
        "projects": [{"id": "proj_1", "name": "default", "title": "Default", "created_at": now - 1000}],
        "service_accounts": [project | {"id": "svc_acct_1", "name": "first key", "created_at": now - 1000}],
        "api_keys": [
            project
            | {
                "id": "key_1",
                "name": "first key",
                "key_sha256": hashlib.sha256(API_KEY.encode()).hexdigest(),
                "hint": API_KEY[-4:],
                "service_account_id": "svc_acct_1",
                "role": "project",
                "created_at": now - 1000,
            }
        ],
        "files": [
            file
            | {"id": "file-1", "filename": "train.jsonl", "storage_key": "files/file-1", "examples": 12}
            | {"longest_line": 150, "created_at": now - 1000},
            file
            | {"id": "file-2", "filename": "metrics.csv", "storage_key": "files/file-2"}
            | {"purpose": "fine-tune-results", "bytes": 7, "created_at": now - 600},
        ],
        "uploads": [
            project
            | {"id": "upload_1", "filename": "train.jsonl", "purpose": "fine-tune", "bytes": 7}
            | {"mime_type": "text/jsonl", "status": "pending"}
            | {"created_at": now - 60, "expires_at": now + 3540}
        ],
        "upload_parts": [
            {"id": "part_1", "upload_id": "upload_1", "bytes": 7, "sha256": "0" * 64, "created_at": now - 30}
        ],
        "file_checks": [{"file_id": "file-1", "epoch": 1, "attempts": 1, "lease_until": now - 1}],
        "fine_tuning_jobs": [
            job | {"id": "ftjob-waiting", "status": "queued", "created_at": now - 900},
            running
            | {"id": "ftjob-held", "created_at": now - 901, "lease_epoch": 1}
            # Long enough for a slow machine.
            | {"lease_until": now + 3600, "estimated_finish": now + 60, "recorded_step": 2},
            running
            | {"id": "ftjob-lost", "created_at": now - 902, "lease_epoch": 2}
            | {"lease_until": now - 60, "attempts_failed": 1},
            finished
            | {"id": "ftjob-done", "status": "succeeded", "created_at": now - 903, "suffix": "soup"}
            | {"fine_tuned_model": MODEL, "trained_tokens": 42, "result_file_id": "file-2"}
            | {"validation_file_id": "file-1", "job_metadata": {"team": "kitchen"}},
            finished
            | {"id": "ftjob-failed", "status": "failed", "created_at": now - 904}
            | {"error": {"code": "training_diverged", "message": "It burnt.", "param": None}},
        ],
        "fine_tuning_events": [
            event | {"id": "ftevent-1", "type": "message", "message": "Fine-tuning job started"},
            event
            | {
                "id": "ftevent-2",
                "type": "metrics",
                "message": "Step 3/3",
                "data": {"step": 3, "train_loss": 0.5},
            },
            event | {"id": "ftevent-3", "type": "message", "message": "The job has successfully completed"},
        ],
        "fine_tuning_attempts": [
            project
            | {"job_id": "ftjob-done", "epoch": 1, "gpus": 1}
            | {"started_at": now - 900, "ended_at": now - 600}
        ],
        "fine_tuning_checkpoints": [
            {"id": "ftckpt_1", "job_id": "ftjob-done", "step_number": 3, "metrics": {"step": 3}}
            | {"fine_tuned_model_checkpoint": CHECKPOINT, "created_at": now - 600}
        ],
        "adapters": [
            adapter | {"name": CHECKPOINT, "storage_key": "jobs/ftjob-done/1/checkpoints/step-3"},
            adapter | {"name": MODEL, "storage_key": "jobs/ftjob-done/1/checkpoints/step-3"},
        ],
        "workers": [
            {"id": "worker_1", "hostname": "h", "pid": 1, "device": "cpu", "version": "0.1.0"}
            | {"job_id": "ftjob-held", "started_at": now - 1000, "heartbeat_at": now, "memory_bytes": 2**33}
        ],
        "training_speeds": [
            {"job_id": "ftjob-done", "base_model": BASE_MODEL, "device": "cpu", "worker_id": "worker_1"}
            | {"measured_at": now - 600, "lora_rank": 16, "value_bytes": 2, "tokens": 42, "seconds": 9.5}
            | {"startup_seconds": 4.5, "training": {"steps": 9}, "looking": {}, "largest": {}}
            | {"resident_memory_bytes": 2**29, "peak_memory_bytes": 2**31}
        ],
        "engines": [
            {"id": "engine_1", "base_model": BASE_MODEL, "url": "unix:/none", "api_key": "k"}
            | {"status": "starting", "detail": "", "device": "cpu", "version": "0.32.0"}
            | {"started_at": now, "heartbeat_at": now}
        ],
        "shared_devices": [
            {"name": "gpu-0", "worker_id": "worker_1", "worker_until": now, "engine_until": now}
        ],
        "usage": [
            project
            | {"minute": int(now) // 60 * 60, "model": MODEL}
            | {"requests": 1, "input_tokens": 5, "output_tokens": 2}
        ],
        "alias_usage": [
            project
            | {"minute": int(now) // 60 * 60, "model": MODEL, "alias": "soup:live"}
            | {"requests": 1, "input_tokens": 5, "output_tokens": 2}
        ],
        "key_usage": [
            project
            | {"minute": int(now) // 60 * 60, "model": MODEL, "api_key_id": "key_1"}
            | {"requests": 1, "input_tokens": 5, "output_tokens": 2}
        ],
        "usage_entries": [
            project
            | {"minute": int(now) // 60 * 60, "model": MODEL, "api_key_id": "key_1", "alias": alias}
            | {"requests": 1, "input_tokens": 5, "output_tokens": 2}
            for alias in ("soup:live", None)
        ],
        "usage_batches": [{"gateway_id": "gateway_1", "number": 1, "written_at": now}],
        "rate_limits": [
            project | {"id": "rl_1", "api_key_id": "", "base_model": "", "max_requests_per_1_minute": 60}
        ],
        "rate_windows": [project | {"name": "rl_1:requests", "most": 60, "used": 1, "ends_at": now + 60}],
        "requests_in_flight": [
            project
            | {"name": "rl_1:concurrent_requests", "gateway_id": "gateway_1"}
            | {"count": 1, "alive_until": now + 60}
        ],
        "engine_demands": [{"gateway_id": "gateway_", "base_model": BASE_MODEL, "asked_at": now - 5}],
        "base_models": [
            {"name": "added", "entry": {"name": "added", "source": "owner/added"}, "added_at": now - 700}
        ],
        "stored_base_models": [
            {"name": "added", "source": "owner/added", "digest": "0" * 64, "bytes": 7, "stored_at": now - 700}
        ],
        "creations": [
            project
            | {"id": "creation_1", "idempotency_key": "k1", "request_sha256": "0" * 64}
            | {"resource_id": "ftjob-waiting", "created_at": now - 900}
        ],
        "comparisons": [
            project
            | {"id": "cmp_1", "status": "succeeded", "model": BASE_MODEL, "file_id": "file-1"}
            | {"plan": {}, "excluded": [], "total": 1, "done": 1, "lease_epoch": 1, "created_at": now - 900}
        ],
        "comparison_questions": [
            {"id": "cmpitem_1", "comparison_id": "cmp_1", "number": 0, "content": {"line": 1}}
        ],
        "comparison_answers": [reply],
        "comparison_judgements": [reply | {"turn": 0}],
        "batches": [
            project
            | {"id": "batch_1", "endpoint": "/v1/chat/completions", "input_file_id": "file-1"}
            | {"status": "in_progress", "total": 1, "completed": 1, "failed": 0}
            | tokens
            | {"created_at": now - 400, "expires_at": now + 86_000, "lease_epoch": 1}
        ],
        "batch_answers": [{"batch_id": "batch_1", "number": 1, "line": b"{}\n", "failed": False} | tokens],
        "responses": [
            project
            | {"id": "resp_1", "previous_id": "resp_0", "input": [], "response": {"id": "resp_1"}}
            | {"bytes": 2, "expires_at": now + 86_000}
        ],
        "aliases": [
            project
            | {"id": "alias_1", "name": "soup:live", "split": [{"model": MODEL, "weight": 1.0}], "version": 1}
            | {"created_at": now - 500, "updated_at": now - 500}
        ],
        "alias_changes": [
            {"id": "aliaschange_1", "alias_id": "alias_1", "version": 1, "kind": "created", "key_id": "key_1"}
            | {"split_before": [], "split_after": [{"model": MODEL, "weight": 1.0}], "created_at": now - 500}
        ],
        "audit_logs": [
            project
            | {"id": "audit_log-1", "effective_at": now - 500, "type": "alias.created"}
            | {
                "resource_id": "alias_1",
                "actor_type": "api_key",
                "actor_id": "key_1",
                "before": {},
                "after": {},
            }
        ],
        "tracked_runs": [
            {"job_id": "ftjob-done", "tracker": "mlflow", "project": "toque", "name": "ftjob-done"}
            | {"tags": [], "is_announced": True, "sent_step": 3, "ended_at": now - 400, "failures": 0}
            | {"is_warned": False, "not_before": 0.0, "lease_epoch": 1}
        ],
        "webhook_endpoints": [
            project
            | {"id": "whe_1", "name": "ci", "url": "https://ci.invalid/", "event_types": ["batch.failed"]}
            | {"secret": "whsec_AAAA", "enabled": False, "failures": 0, "not_before": 0.0, "lease_epoch": 1}
            | {"created_at": now - 500, "updated_at": now - 500}
        ],
        "webhook_deliveries": [
            project
            | {"id": "whd_1", "endpoint_id": "whe_1", "event_id": "evt_1"}
            | {"event_type": "batch.failed", "event_created_at": now - 400, "data": {"id": "batch_0"}}
            | {"created_at": now - 400, "ended_at": now - 399, "status": "succeeded", "attempts": 1}
        ],
    }


def tables(engine: Engine) -> list[Table]:
    """As they are in the database, parents first."""
    found = MetaData()
    found.reflect(engine)
    return [table for table in found.sorted_tables if table.name != "alembic_version"]


def contents(engine: Engine) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table, in the order of its key."""
    with engine.connect() as connection:
        return {
            table.name: [
                dict(row._mapping)
                for row in connection.execute(select(table).order_by(*table.primary_key.columns))
            ]
            for table in tables(engine)
        }


def fill(engine: Engine, known: dict[str, list[dict[str, Any]]]) -> None:
    """At least one row in every table."""
    with engine.begin() as connection:
        for table in tables(engine):
            assert known.get(table.name), f"`rows` has none for {table.name}"
            for row in known[table.name]:
                there = {name: value for name, value in row.items() if name in table.columns}
                connection.execute(table.insert().values(there))


def test_tables_keep_their_rows_where_they_must_be_copied(database_url: str) -> None:
    """As SQLite does on the way down, where columns go."""
    database = Database(database_url)
    fill(database.engine, rows(time.time()))
    before = contents(database.engine)
    database.dispose()

    command.downgrade(configuration(database_url), REVISIONS[0])

    after = contents(database.engine)
    assert len(after["fine_tuning_jobs"][0]) < len(before["fine_tuning_jobs"][0])
    for table, kept in after.items():
        assert [{name: row[name] for name in kept[0]} for row in before[table]] == kept
    database.dispose()


def test_a_key_that_may_do_less_is_revoked_on_the_way_down(database_url: str) -> None:
    """Before there were roles, every key could do everything in its project, for ever."""
    database = Database(database_url)
    known = rows(time.time())
    [key] = known["api_keys"]
    limits: dict[str, dict[str, Any]] = {
        "key_2": {"role": "read"},
        "key_3": {"expires_at": time.time() + 60},
        "key_4": {"role": "admin"},
    }
    known["api_keys"] += [key | limit | {"id": name, "key_sha256": name} for name, limit in limits.items()]
    fill(database.engine, known)
    database.dispose()
    command.downgrade(configuration(database_url), BEFORE_ROLES)
    kept = [row["id"] for row in contents(database.engine)["api_keys"] if row["revoked_at"] is None]
    assert kept == ["key_1", "key_4"]
    database.dispose()


@pytest.mark.one_database  # of each two revisions, one is begun on either; all later migrations have its rows
@pytest.mark.parametrize("revision", REVISIONS)
def test_a_deployment_of_any_revision_goes_on(revision: str, settings: Settings) -> None:
    remove_tables(settings.database_url)
    command.upgrade(configuration(settings.database_url), revision)
    storage = open_storage(settings)
    storage.write("files/file-1", training_bytes())
    storage.write("files/file-2", b"step\n3\n\n")
    database = Database(settings.database_url)
    fill(database.engine, rows(time.time()))
    before = contents(database.engine)
    database.dispose()  # its connections know the old tables

    upgrade(settings.database_url)

    after = contents(database.engine)
    for table, old in before.items():
        assert [{name: row[name] for name in old[0]} for row in after[table]] == old
    check_what_users_see(settings, {row["name"] for row in before.get("base_models", [])})
    check_what_workers_do(settings, database)
    database.dispose()


BEFORE_ROLES = "0021"
"""The revision of the deployments before this version."""


def test_a_deployment_is_upgraded_while_its_worker_trains(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    command.downgrade(configuration(settings.database_url), BEFORE_ROLES)
    database, ended = Database(settings.database_url), threading.Event()
    storage = open_storage(settings)
    storage.write("files/file-1", training_bytes())
    storage.write("files/file-2", b"step\n3\n\n")
    fill(database.engine, rows(time.time()))
    beats: list[int] = []

    def train_on() -> None:
        """What the old version's worker does to the job that it holds."""
        lease = Lease("ftjob-held", 1)
        while not ended.wait(0.02):
            with database.writer() as session:
                queue.LEASES.renew(session, lease, 60.0)
                queue.add_event(session, lease.id, f"beat {len(beats)}")
            beats.append(1)

    with ThreadPoolExecutor() as threads:
        training = threads.submit(train_on)
        try:
            wait_until(lambda: beats, "the old worker trains")
            done = run(settings, "db", "upgrade")
            assert done.exit_code == 0, done.output
            before = len(beats)
            wait_until(lambda: len(beats) > before or training.done(), "it goes on with the new schema")
        finally:
            ended.set()
        training.result()
    assert "no API key has the role admin" in caplog.text
    with database.reader() as session:
        recorded = session.scalars(select(Event.message).where(Event.message.startswith("beat"))).all()
    assert len(recorded) == len(beats)
    check_what_users_see(settings, {"added"})
    check_what_workers_do(settings, database)
    database.dispose()

    caplog.clear()
    assert run(settings, "keys", "create", "boss", "--role", "admin").exit_code == 0
    assert run(settings, "db", "upgrade").exit_code == 0
    assert "no API key has the role admin" not in caplog.text


def check_what_users_see(settings: Settings, added_bases: set[str]) -> None:
    with run_service(settings) as service, service.client() as client:
        done, failed = (client.fine_tuning.jobs.retrieve(f"ftjob-{name}") for name in ("done", "failed"))
        assert (done.status, done.fine_tuned_model, done.trained_tokens) == ("succeeded", MODEL, 42)
        assert (done.metadata, done.seed, done.suffix) == ({"team": "kitchen"}, 2**31 - 1, "soup")
        assert client.files.content(done.result_files[0]).read() == b"step\n3\n\n"
        events = client.fine_tuning.jobs.list_events(done.id).data
        assert [event.id for event in events] == ["ftevent-3", "ftevent-2", "ftevent-1"]
        [checkpoint] = client.fine_tuning.jobs.checkpoints.list(done.id).data
        assert checkpoint.fine_tuned_model_checkpoint == CHECKPOINT
        listed = {model.id for model in client.models.list()}
        assert listed == {BASE_MODEL, MODEL, CHECKPOINT} | added_bases
        assert failed.error is not None
        assert (failed.status, failed.error.message) == ("failed", "It burnt.")
        # New ones beside the old.
        added = create(client)
        assert client.fine_tuning.jobs.cancel(added.id).status == "cancelled"
        listed = [job.id.removeprefix("ftjob-") for job in client.fine_tuning.jobs.list()]
        assert listed == [added.id.removeprefix("ftjob-"), "waiting", "held", "lost", "done", "failed"]


def check_what_workers_do(settings: Settings, database: Database) -> None:
    storage = open_storage(settings)
    with database.reader() as session:
        adapter = adapters_service.find_servable(session, BASE_MODEL, MODEL)
    assert adapter is not None
    assert adapter.storage_key == "jobs/ftjob-done/1/checkpoints/step-3"

    with database.writer() as session:
        queue.LEASES.renew(session, Lease("ftjob-held", 1), 60.0)
        assert queue.reclaim_expired(session, retry_seconds=0) == 1
    claimed: dict[str, FineTuningJob] = {}
    for _ in range(2):
        with database.writer() as session:
            job = claim_next(session, "worker_2", [BASE_MODEL], 60.0)
        assert job is not None
        claimed[job.id] = job
    assert {job.id: job.lease_epoch for job in claimed.values()} == {"ftjob-waiting": 1, "ftjob-lost": 3}
    with database.reader() as session:
        claimed["ftjob-held"] = session.get_one(FineTuningJob, "ftjob-held")

    for job in claimed.values():
        assert msgspec.convert(job.hyperparameters, Hyperparameters).lora_rank == 16
        with AttemptFiles(storage, f"jobs/{job.id}", job.lease_epoch) as files:
            train(JobReporter(database, storage, files, job, queue.LEASES.lease_of(job), settings), files)
    with run_service(settings) as service, service.client() as client:
        for job_id in claimed:
            done = client.fine_tuning.jobs.retrieve(job_id)
            assert (done.status, done.trained_tokens) == ("succeeded", 30)
            assert done.fine_tuned_model == f"ft:{BASE_MODEL}:default::{job_id.removeprefix('ftjob-')}"
            assert client.models.retrieve(done.fine_tuned_model).owned_by == "proj_1"


def train(reporter: JobReporter, files: AttemptFiles) -> None:
    """What a trainer says in an attempt that ends well."""
    folder = files.folder / "checkpoints/step-3"
    folder.mkdir(parents=True)
    metrics = [Metrics(step=step, train_loss=1 / step) for step in (1, 2, 3)]
    reporter.report(
        Started(
            total_steps=3,
            examples=12,
            tokens_per_epoch=10,
            trainable_parameters=1,
            device="cpu",
            resumed_step=0,
        )
    )
    for step in metrics:
        reporter.report(Step(metrics=step, epoch=1, learning_rate=1e-3, tokens=10, elapsed_seconds=1.0))
    reporter.report(Checkpoint(metrics=metrics[-1], path=str(folder)))
    reporter.report(Finished(path=str(folder), trained_tokens=30, elapsed_seconds=1.0, peak_memory_bytes=1))
