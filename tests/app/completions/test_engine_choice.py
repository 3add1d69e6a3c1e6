"""Which engines a machine runs, by what is asked for and what fits."""

from __future__ import annotations

from collections.abc import Collection

from app.completions.engine_choice import Candidate, choose_engines

DEFAULT = Candidate("default", 4, is_default=True)


def choose(*candidates: Candidate, running: Collection[str] = (), memory: int = 10) -> list[str]:
    return choose_engines(candidates, running, idle_limit=600, memory_bytes=memory)


def test_the_default_runs_unasked_and_others_while_they_are_asked_for() -> None:
    assert choose(DEFAULT, Candidate("other", 4)) == ["default"]
    assert choose(DEFAULT, Candidate("other", 4, idle_seconds=599)) == ["other", "default"]
    assert choose(DEFAULT, Candidate("other", 4, idle_seconds=600), running=["other"]) == ["default"]


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
