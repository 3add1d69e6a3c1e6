"""What the check of a training file found, as the API and the command show it."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import BaseModel

from app.datasets.findings import BASE_MODEL_CODES, FINDING_KINDS, MAX_SHOWN_PER_CODE, Findings, Severity
from app.datasets.scan import Scan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MIN_EXAMPLES = 10
_NARROWEST_BIN = 16
_ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "info": 2}


class Finding(BaseModel):
    """One thing about one place of the file."""

    code: str
    severity: Severity
    line: int | None
    """From 1; null where it is about the file as a whole."""
    pointer: str
    """JSON pointer (RFC 6901) into the line; empty: the line as a whole."""
    message: str
    hint: str
    excerpt: str
    """The line's beginning."""


class FindingCount(BaseModel):
    """How often a code was found; `findings` shows the first few places."""

    code: str
    severity: Severity
    count: int


class LengthBin(BaseModel):
    """Examples of at most `up_to` tokens, and more than the bin before."""

    up_to: int
    examples: int


class TokenLengths(BaseModel):
    """Tokens of an example, as the base model reads it."""

    p50: int
    p90: int
    p99: int
    max: int
    context: int
    """Of the base model: no example may be longer."""
    over_context: int
    histogram: list[LengthBin]


class Duplicates(BaseModel):
    """Examples that repeat an earlier one."""

    exact: int
    near: int
    """Equal but for case, spaces and punctuation; the exact ones are not among them."""


class Counts(BaseModel):
    """What the file holds. Tokens are those of the base model; null where it is not on this machine."""

    lines: int
    examples: int
    turns: int
    roles: dict[str, int]
    formats: dict[str, int]
    tokens: int | None
    target_tokens: int | None


class Report(BaseModel):
    """Of one training file, and one base model."""

    base_model: str | None
    """Whose tokens are counted; null where none is prepared on this machine."""
    counts: Counts
    token_lengths: TokenLengths | None
    duplicates: Duplicates
    scripts: dict[str, int]
    """Letters by script (Latin, Cyrillic, Han, …), most first; estimated in files over 32 MiB."""
    finding_counts: list[FindingCount]
    findings: list[Finding]
    """Errors first, then in the order of the file; at most ten for each code."""
    longest_line: int
    """Bytes."""

    @property
    def first_error(self) -> Finding | None:
        """The first that makes the file unfit for any job."""
        return next((found for found in self.findings if is_fatal(found.severity, found.code)), None)

    @property
    def errors(self) -> int:
        """How many lines are unfit for any job."""
        return sum(found.count for found in self.finding_counts if is_fatal(found.severity, found.code))


def is_fatal(severity: Severity, code: str) -> bool:
    """Whether no job can be made of it, whatever the base model."""
    return severity == "error" and code not in BASE_MODEL_CODES


def sentence(finding: Finding) -> str:
    """The finding in one line: `Line 4 has an empty user turn (at /messages/0/content).`"""
    place = f" (at {finding.pointer})" if finding.pointer else ""
    subject = f"Line {finding.line} " if finding.line is not None and finding.message[:1].islower() else ""
    return f"{subject}{finding.message}{place}."


def build_report(scan: Scan, base_model: str | None, context: int | None) -> Report:
    """What was found in the file as a whole; `context` is the base's, in tokens, None without a base."""
    examples, findings = len(scan.numbers), scan.findings
    duplicates = _find_duplicates(scan)
    _judge(scan, findings)
    return Report(
        base_model=base_model,
        counts=Counts(
            lines=scan.lines,
            examples=examples,
            turns=scan.turns,
            roles=dict(scan.roles.most_common()),
            formats=dict(scan.formats.most_common()),
            tokens=scan.tokens if context is not None else None,
            target_tokens=scan.target_tokens if context is not None else None,
        ),
        token_lengths=_measure(scan.lengths, context) if context is not None and examples else None,
        duplicates=duplicates,
        scripts={script: count for script, count in scan.scripts.most_common() if count},
        finding_counts=sorted(
            (
                FindingCount(code=code, severity=FINDING_KINDS[code].severity, count=occurrences.count)
                for code, occurrences in findings.by_code.items()
            ),
            key=lambda found: (_ORDER[found.severity], -found.count),
        ),
        findings=sorted(_shown(findings), key=lambda found: (_ORDER[found.severity], found.line or 0)),
        longest_line=scan.longest_line,
    )


def add_equal_files(report: Report) -> None:
    """Notes that the validation file equals this one."""
    code = "validation_equals_training"
    findings = Findings()
    findings.add(code, None, "The validation file has the very bytes of this one")
    report.finding_counts.append(FindingCount(code=code, severity=FINDING_KINDS[code].severity, count=1))
    report.findings.extend(_shown(findings))


def _judge(scan: Scan, findings: Findings) -> None:
    """What can only be said of all lines together."""
    examples = len(scan.numbers)
    if not examples and not any(FINDING_KINDS[code].severity == "error" for code in findings.by_code):
        findings.add("empty_file", None, "The file is empty: it has no training examples")
    elif 0 < examples < MIN_EXAMPLES:
        findings.add("too_few_examples", None, f"The file has {examples} examples")
    if 0 < scan.formats["preference"] < examples:
        pairs = scan.formats["preference"]
        findings.add(
            "mixed_formats", None, f"The file has {pairs:,} preference pairs among {examples:,} examples"
        )


def _shown(findings: Findings) -> Iterator[Finding]:
    for code, occurrences in findings.by_code.items():
        severity, hint = FINDING_KINDS[code]
        for line, pointer, message, excerpt in occurrences.places:
            yield Finding(
                code=code,
                severity=severity,
                line=line,
                pointer=pointer,
                message=message,
                hint=hint,
                excerpt=excerpt,
            )


def _find_duplicates(scan: Scan) -> Duplicates:
    """Counts them, and notes the first of each kind in the findings, with the line that it repeats."""
    import numpy as np  # noqa: PLC0415 - large, and for reports alone

    later, first = _repeats(scan.digests)
    later_near, first_near = _repeats(scan.squashed)
    is_near = ~np.isin(later_near, later)
    later_near, first_near = later_near[is_near], first_near[is_near]
    _note_repeats(scan, "duplicate_example", "repeats line", later, first)
    _note_repeats(scan, "near_duplicate", "nearly repeats line", later_near, first_near)
    return Duplicates(exact=len(later), near=len(later_near))


def _note_repeats(
    scan: Scan, code: str, words: str, later: NDArray[np.int64], first: NDArray[np.int64]
) -> None:
    shown = slice(MAX_SHOWN_PER_CODE)
    for place, original in zip(map(int, later[shown]), map(int, first[shown]), strict=True):
        scan.findings.add(code, scan.numbers[place], f"{words} {scan.numbers[original]}")
    if len(later):
        scan.findings.by_code[code].count = len(later)


def _repeats(digests: array[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places whose digest stood before, in order, and the first place that has it."""
    import numpy as np  # noqa: PLC0415 - as above

    values = np.frombuffer(digests, np.uint64) if digests else np.empty(0, np.uint64)
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    is_new = np.ones(len(values), bool)
    is_new[1:] = ordered[1:] != ordered[:-1]
    firsts = order[np.flatnonzero(is_new)[np.cumsum(is_new) - 1]]
    repeated = np.flatnonzero(~is_new)
    repeated = repeated[np.argsort(order[repeated], kind="stable")]
    return order[repeated], firsts[repeated]


def _measure(lengths: array[int], context: int) -> TokenLengths:
    import numpy as np  # noqa: PLC0415 - as above

    sizes = np.sort(np.frombuffer(lengths, np.uint32))
    edges = [_NARROWEST_BIN]
    while edges[-1] < sizes[-1]:
        edges.append(edges[-1] * 2)
    below = np.searchsorted(sizes, edges, side="right")
    counts = np.diff(below, prepend=0)

    def percentile(share: int) -> int:
        """The length that so many in a hundred do not exceed."""
        return int(sizes[max(0, -(-len(sizes) * share // 100) - 1)])

    return TokenLengths(
        p50=percentile(50),
        p90=percentile(90),
        p99=percentile(99),
        max=int(sizes[-1]),
        context=context,
        over_context=int((sizes > context).sum()),
        histogram=[
            LengthBin(up_to=edge, examples=int(count)) for edge, count in zip(edges, counts, strict=True)
        ],
    )
