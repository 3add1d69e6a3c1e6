"""Whose turn it is: projects take turns, priorities order their own jobs, limits hold, on both databases."""

from __future__ import annotations

import time
from typing import Any

import pytest
from openai import OpenAI
from sqlalchemy import update

from app.core.database import Database
from app.core.lease import Lease
from app.core.settings import Settings
from app.fine_tuning import queue, worker_registry
from app.fine_tuning.claim import claim_next
from app.fine_tuning.models import SPEC_VERSION, FineTuningJob, Worker
from tests.support.jobs import create, upload
from tests.support.service import BASE_MODEL


def claim(database: Database, **limits: Any) -> str | None:
    with database.writer() as session:
        job = claim_next(session, "worker_a", [BASE_MODEL], 60.0, **limits)
        return job.id if job else None


def claim_all(database: Database, *, ending: bool = False, **limits: Any) -> list[str]:
    """Every job that can be claimed, in order; `ending` each before the next is claimed."""
    claimed: list[str] = []
    while (job_id := claim(database, **limits)) is not None:
        claimed.append(job_id)
        if ending:
            end(database, job_id)
    return claimed


def end(database: Database, job_id: str) -> None:
    with database.writer() as session:
        queue.fail(session, Lease(job_id, 1), code="c", message="m", param=None)


def worker(now: float, gpus: int = 1) -> Worker:
    """One that is heard of for an hour from then on."""
    heard = {"started_at": now, "heartbeat_at": now + 3600}
    return Worker(hostname="h", pid=1, device="cpu", gpus=gpus, version="0", **heard)


def queue_jobs(client: OpenAI, count: int, **parameters: Any) -> list[str]:
    file = upload(client)
    return [create(client, training_file=file, **parameters).id for _ in range(count)]


def position(client: OpenAI, job_id: str) -> int:
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert job.model_extra is not None
    return job.model_extra["queue_position"]


def estimated_start(client: OpenAI, job_id: str) -> int | None:
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert job.model_extra is not None
    return job.model_extra["estimated_start"]


@pytest.mark.parametrize("ending", [True, False], ids=["one worker", "a worker for each"])
def test_projects_take_turns(ending: bool, client: OpenAI, other_client: OpenAI, database: Database) -> None:
    many, few = queue_jobs(client, 5), queue_jobs(other_client, 2)

    claimed = claim_all(database, ending=ending)

    assert claimed == [many[0], few[0], many[1], few[1], *many[2:]]


def test_the_project_with_the_fewest_running_jobs_goes_first(
    client: OpenAI, other_client: OpenAI, database: Database
) -> None:
    busy = queue_jobs(client, 4)
    assert [claim(database), claim(database)] == busy[:2]
    late = queue_jobs(other_client, 4)

    assert [claim(database) for _ in range(3)] == [late[0], late[1], busy[2]]
    end(database, late[0])
    assert [claim(database) for _ in range(3)] == [late[2], late[3], busy[3]]


def test_priority_orders_the_jobs_of_one_project_only(
    client: OpenAI, other_client: OpenAI, database: Database
) -> None:
    file = upload(client)
    low, plain, urgent, urgent_too = (
        create(client, training_file=file, extra_body={"priority": priority}).id
        for priority in (-1, None, 100, 100)
    )
    [patient] = queue_jobs(other_client, 1, extra_body={"priority": -100})
    shown = client.fine_tuning.jobs.retrieve(urgent).model_extra
    assert shown is not None
    assert shown["priority"] == 100

    claimed = claim_all(database, ending=True)

    assert [job_id for job_id in claimed if job_id != patient] == [urgent, urgent_too, plain, low]
    assert claimed.index(patient) <= 1, "another project's priority takes no turn away"


def test_a_project_runs_no_more_jobs_than_its_limit(
    client: OpenAI, other_client: OpenAI, database: Database
) -> None:
    jobs, others = queue_jobs(client, 4), queue_jobs(other_client, 1)

    assert claim_all(database, running_limit=2) == [jobs[0], others[0], jobs[1]]
    end(database, others[0])
    assert claim(database, running_limit=2) is None, "another project's slot is not theirs"
    end(database, jobs[1])
    assert claim_all(database, running_limit=2) == [jobs[2]]
    assert client.fine_tuning.jobs.cancel(jobs[0]).status == "cancelled"
    assert claim_all(database, running_limit=2) == [jobs[3]]


def test_a_project_at_its_limit_keeps_no_other_waiting(
    client: OpenAI, other_client: OpenAI, database: Database
) -> None:
    busy = queue_jobs(client, 3)
    assert claim(database, running_limit=1) == busy[0]
    late = queue_jobs(other_client, 2)

    assert claim_all(database, running_limit=1) == [late[0]]
    end(database, late[0])
    assert claim_all(database, running_limit=1) == [late[1]]
    assert claim_all(database) == busy[1:]


def test_an_older_worker_leaves_newer_jobs_to_newer_workers(
    client: OpenAI, other_client: OpenAI, database: Database
) -> None:
    newer, plain, behind = queue_jobs(client, 3)
    [newest] = queue_jobs(other_client, 1)
    with database.writer() as session:
        for job_id, version in ((newer, SPEC_VERSION + 1), (newest, SPEC_VERSION + 2)):
            changed = update(FineTuningJob).where(FineTuningJob.id == job_id)
            session.execute(changed.values(spec_version=version))

    assert claim_all(database) == [plain, behind]
    assert client.fine_tuning.jobs.retrieve(newer).status == "queued"
    assert claim_all(database, spec_version=SPEC_VERSION + 1) == [newer]
    assert claim_all(database, spec_version=SPEC_VERSION + 2) == [newest]


@pytest.mark.parametrize(("running", "ending"), [(0, True), (0, False), (1, False), (2, False)])
def test_the_position_shown_is_the_order_in_which_jobs_are_claimed(
    running: int, ending: bool, client: OpenAI, other_client: OpenAI, database: Database
) -> None:
    owners = dict.fromkeys(queue_jobs(client, running), client)
    for job_id in claim_all(database):
        del owners[job_id]
    # The project that was made later asks first.
    owners |= dict.fromkeys(queue_jobs(other_client, 2), other_client)
    owners |= dict.fromkeys(queue_jobs(client, 3), client)
    owners |= dict.fromkeys(queue_jobs(client, 1, extra_body={"priority": 5}), client)
    owners |= dict.fromkeys(queue_jobs(other_client, 1), other_client)
    expected = sorted(owners, key=lambda job_id: position(owners[job_id], job_id))
    assert [position(owners[job_id], job_id) for job_id in expected] == list(range(7))

    claimed: list[str] = []
    while (job_id := claim(database)) is not None:
        claimed.append(job_id)
        for rest, owner in owners.items():
            if rest not in claimed:
                assert position(owner, rest) == expected.index(rest) - len(claimed)
        if ending:
            end(database, job_id)

    assert claimed == expected


def test_the_estimated_start_follows_from_position_workers_and_past_jobs(
    client: OpenAI, database: Database
) -> None:
    done, running, *waiting = queue_jobs(client, 4)
    assert estimated_start(client, waiting[0]) is None, "no worker, and nothing to judge by"

    now = time.time()
    with database.writer() as session:
        for job_id, values in (
            (done, {"status": "succeeded", "started_at": now - 700, "finished_at": now - 100}),
            (running, {"status": "running", "started_at": now, "estimated_finish": now + 1000}),
        ):
            session.execute(update(FineTuningJob).where(FineTuningJob.id == job_id).values(**values))
        session.add(worker(now))
    starts = {job_id: estimated_start(client, job_id) for job_id in waiting}
    assert starts == {job_id: int(now + 1000 + 600 * place) for place, job_id in enumerate(waiting)}
    assert estimated_start(client, running) is None

    # A second worker is free now, and both share what waits.
    with database.writer() as session:
        session.add(worker(now))
    for place, job_id in enumerate(waiting):
        asked = time.time()
        starts = estimated_start(client, job_id)
        assert starts is not None
        assert asked - 1 <= starts - 300 * place <= time.time()


def test_a_job_is_claimed_only_where_it_has_its_gpus_and_holds_up_no_other(
    client: OpenAI, database: Database
) -> None:
    [four] = queue_jobs(client, 1, extra_body={"gpus": 4})
    [two] = queue_jobs(client, 1, extra_body={"gpus": 2})
    ones = queue_jobs(client, 2)
    assert claim(database) == ones[0], "a worker with one GPU passes over those that need more"
    assert claim(database, gpus=2) == two
    assert claim(database, gpus=3) == ones[1]
    assert claim(database, gpus=3) is None
    assert claim(database, gpus=4, spec_version=2) is None, "an older worker would train it on one"
    assert claim(database, gpus=8) == four


def test_a_large_job_is_not_overtaken_where_it_can_run(client: OpenAI, database: Database) -> None:
    [four] = queue_jobs(client, 1, extra_body={"gpus": 4})
    ones = queue_jobs(client, 2)
    assert [claim(database, gpus=4) for _ in range(3)] == [four, *ones]


def test_a_job_that_no_worker_can_run_says_so_once(
    client: OpenAI, database: Database, settings: Settings
) -> None:
    def warnings(job_id: str) -> list[str]:
        return [
            event.message for event in client.fine_tuning.jobs.list_events(job_id) if event.level == "warn"
        ]

    def maintain() -> None:
        with database.writer() as session:
            queue.note_missing_gpus(
                session, worker_registry.offered_gpus(session, settings.heartbeat_seconds)
            )

    [early] = queue_jobs(client, 1, extra_body={"gpus": 3})
    maintain()
    assert warnings(early) == [], "no worker is running: nothing is known"
    now = time.time()
    with database.writer() as session:
        session.add_all([worker(now), worker(now, gpus=2), worker(now - 7200, gpus=8)])
    [late] = queue_jobs(client, 1, extra_body={"gpus": 4})
    [fits] = queue_jobs(client, 1, extra_body={"gpus": 2})
    for _ in range(2):
        maintain()
    assert warnings(late) == ["No worker offers 4 GPUs; the largest offers 2: the job waits"]
    assert warnings(early) == ["No worker offers 3 GPUs; the largest offers 2: the job waits"]
    assert warnings(fits) == []
    found = create(client, extra_body={"gpus": 4, "dry_run": True}).to_dict()
    assert found["waits"] == "No worker offers 4 GPUs; the largest offers 2."
    assert create(client, extra_body={"gpus": 2, "dry_run": True}).to_dict()["waits"] is None
    assert client.fine_tuning.jobs.retrieve(late).status == "queued"
