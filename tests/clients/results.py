"""What was tried with a client, and what came of it: read from JUnit's XML, which pytest and Node write."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase


@dataclass(frozen=True)
class Attempt:
    """One thing that was tried."""

    name: str
    seconds: float
    failure: str = ""
    """What went wrong, if anything did."""
    limitation: str = ""
    """Why the client cannot do it, if it is the client's own doing."""


@dataclass
class Result:
    """All that was tried with a client."""

    client: str
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def failures(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.failure]

    @property
    def seconds(self) -> float:
        return sum(attempt.seconds for attempt in self.attempts)


def read(client: str, report: Path, output: str) -> Result:
    """Returns what a report says; a client without one, or that tried nothing, has failed with its output."""
    found = Result(client)
    with suppress(OSError, SyntaxError):  # there is none, or it was not finished
        found.attempts = [_attempt(case) for case in _cases(JUnitXml.fromfile(str(report)))]
    if not found.attempts:
        found.attempts = [Attempt("its scripts end", 0.0, failure=output[-2000:] or "it printed nothing")]
    return found


def readable(name: str) -> str:
    """Returns the name of a test as words: `test_a_file_is_read[small]` is `a file is read (small)`."""
    words, _, parameter = name.removeprefix("test_").partition("[")
    if name.startswith("test_"):
        words = words.replace("_", " ")
    return f"{words} ({parameter.removesuffix(']')})" if parameter else words


def _cases(report: JUnitXml) -> list[TestCase]:
    return list(report.iterchildren(TestCase)) + [case for suite in report for case in suite]


def _attempt(case: TestCase) -> Attempt:
    failure, limitation = "", ""
    for said in case.result:
        text = f"{said.message or ''}\n{said.text or ''}".strip()
        if isinstance(said, (Failure, Error)):
            failure = text or "it failed"
        elif isinstance(said, Skipped):
            limitation = said.message or "skipped"
            if said.type != "pytest.xfail":  # nothing is left out in silence
                failure = f"it was not tried: {limitation}"
    return Attempt(readable(case.name or ""), case.time or 0.0, failure, limitation)
