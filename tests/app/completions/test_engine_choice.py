"""Which engines a machine runs, by what is asked for and what fits."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from app.completions import service
from app.completions.engine_choice import Candidate, choose_engines
from app.core.database import Database
from app.fine_tuning.models import FineTuningJob
from app.models.adapters import service as adapters_service
from app.models.adapters.models import Adapter
from tests.support.job_rows import add_job

DEFAULT = Candidate("default", 4, is_default=True)


def choose(*candidates: Candidate, running: Collection[str] = (), memory: int = 10) -> list[str]:
    return choose_engines(candidates, running, idle_limit=600, memory_bytes=memory)


def test_the_default_runs_unasked_and_others_while_they_are_asked_for() -> None:
    assert choose(DEFAULT, Candidate("other", 4)) == ["default"]
    assert choose(DEFAULT, Candidate("other", 4, idle_seconds=599)) == ["other", "default"]
    assert choose(DEFAULT, Candidate("other", 4, idle_seconds=600), running=["other"]) == ["default"]


def test_models_that_were_never_compared_keep_asking_for_an_engine() -> None:
    waiting = Candidate("other", 6, idle_seconds=86400, has_unverified=True)
    busy = Candidate("busy", 6, idle_seconds=5)
    assert choose(DEFAULT, waiting, memory=6) == ["other"]
    assert choose(DEFAULT, waiting, busy, running=["busy"], memory=6) == ["busy"], "requests come first"


def test_the_last_one_asked_for_has_the_room() -> None:
    idle = Candidate("idle", 4, idle_seconds=300)
    busy = Candidate("busy", 4, idle_seconds=5)
    assert choose(DEFAULT, idle, busy, running=["default", "idle"]) == ["busy", "idle"]
    assert choose(DEFAULT, idle, busy, memory=12) == ["busy", "idle", "default"]


def test_one_that_answers_is_not_stopped_for_another() -> None:
    answering = Candidate("answering", 6, idle_seconds=59)
    new = Candidate("new", 6, idle_seconds=0)
    assert choose(DEFAULT, answering, new, running=["answering"]) == ["answering", "default"]
    quiet = Candidate("answering", 6, idle_seconds=60)
    assert choose(DEFAULT, quiet, new, running=["answering"]) == ["new", "default"]


def test_one_runs_however_large_it_is() -> None:
    assert choose(Candidate("default", 40, is_default=True)) == ["default"]
    assert choose(DEFAULT, Candidate("huge", 40, idle_seconds=0)) == ["huge"]
    assert choose() == []


def test_a_model_is_unverified_until_it_is_compared(database: Database) -> None:
    model = {"project_id": "proj_t", "job_id": "ftjob-t", "base_model": "tiny", "storage_key": "t"}
    with database.writer() as session:
        add_job(session)
        session.add(Adapter(name="ft:tiny:t::1", **model))
        session.add(Adapter(name="ft:tiny:t::1:ckpt-step-1", **model))
        session.flush()
        session.get_one(FineTuningJob, "ftjob-t").fine_tuned_model = "ft:tiny:t::1"
        session.flush()
        unverified = service.unverified_seconds(session)
        assert unverified == {"tiny": pytest.approx(0, abs=5)}
        assert service.idle_seconds(session, service.unverified_seconds(session)) == {
            "tiny": pytest.approx(unverified["tiny"], abs=5)
        }
        service.record_demand(session, "gateway_1", {"other": 0})
        assert set(service.idle_seconds(session, service.unverified_seconds(session))) == {"tiny", "other"}
        assert adapters_service.record_parity(session, "ft:tiny:t::1", {"tokens": 3})
        assert service.unverified_seconds(session) == {}
        assert set(service.idle_seconds(session, service.unverified_seconds(session))) == {"other"}
