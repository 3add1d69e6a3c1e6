"""The validation report of a training file, as the API and the command show it."""

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
    """One finding at one place in the file."""

    code: str
    severity: Severity
    line: int | None
    """Line number from 1; null where the finding concerns the whole file."""
    pointer: str
    """JSON pointer (RFC 6901) into the line; empty for the whole line."""
    message: str
    hint: str
    excerpt: str
    """Beginning of the line."""


class FindingCount(BaseModel):
    """How often a code was found; `findings` has only the first few occurrences."""

    code: str
    severity: Severity
    count: int


class LengthBin(BaseModel):
    """The number of examples with at most `up_to` tokens and more than the previous bin's."""

    up_to: int
    examples: int


class TokenLengths(BaseModel):
    """The distribution of the examples' lengths, in tokens of the base model."""

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
    """Examples that differ only in case, white space and punctuation, without the exact duplicates."""


class Counts(BaseModel):
    """What the file contains. Token counts are null where the base model is not prepared on this machine."""

    lines: int
    examples: int
    turns: int
    roles: dict[str, int]
    formats: dict[str, int]
    tokens: int | None
    target_tokens: int | None


class Report(BaseModel):
    """The validation report of a training file for one base model."""

    base_model: str | None
    """Base model whose tokens are counted; null where none is prepared on this machine."""
    counts: Counts
    token_lengths: TokenLengths | None
    duplicates: Duplicates
    scripts: dict[str, int]
    """Letters by script (Latin, Cyrillic, Han, …), most frequent first; estimated in files over 32 MiB."""
    finding_counts: list[FindingCount]
    findings: list[Finding]
    """Findings with the errors first, then in the file's order; at most ten of each code."""
    longest_line: int
    """Bytes in the longest line."""

    @property
    def first_error(self) -> Finding | None:
        """Returns the first finding that makes the file unusable for any job."""
        return next((found for found in self.findings if is_fatal(found.severity, found.code)), None)

    @property
    def errors(self) -> int:
        """Returns the number of findings that make the file unusable for any job."""
        return sum(found.count for found in self.finding_counts if is_fatal(found.severity, found.code))


class Progress(BaseModel):
    """What a check has found so far, without what depends on all lines together."""

    bytes_read: int
    bytes: int
    lines: int
    examples: int
    finding_counts: list[FindingCount]
    findings: list[Finding]
    """As in a report."""

    @classmethod
    def of(cls, scan: Scan, bytes_read: int, size: int) -> Progress:
        """Describes the scan of the first bytes of a file."""
        return cls(
            bytes_read=bytes_read,
            bytes=size,
            lines=scan.lines,
            examples=len(scan.line_numbers),
            finding_counts=_counted(scan.findings),
            findings=_listed(scan.findings),
        )


def is_fatal(severity: Severity, code: str) -> bool:
    """Returns whether the finding makes the file unusable with every base model."""
    return severity == "error" and code not in BASE_MODEL_CODES


def sentence(finding: Finding) -> str:
    """Returns the finding as one sentence: `Line 4 has an empty user turn (at /messages/0/content).`"""
    place = f" (at {finding.pointer})" if finding.pointer else ""
    subject = f"Line {finding.line} " if finding.line is not None and finding.message[:1].islower() else ""
    return f"{subject}{finding.message}{place}."


def build_report(scan: Scan, base_model: str | None, context: int | None) -> Report:
    """Makes the report of a whole file's scan; `context` is the base model's, in tokens, or None."""
    examples, findings = len(scan.line_numbers), scan.findings
    duplicates = _find_duplicates(scan)
    _check_whole_file(scan, findings)
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
        token_lengths=_measure_lengths(scan.lengths, context) if context is not None and examples else None,
        duplicates=duplicates,
        scripts={script: count for script, count in scan.scripts.most_common() if count},
        finding_counts=_counted(findings),
        findings=_listed(findings),
        longest_line=scan.longest_line,
    )


def timed_out_report(seconds: float) -> Report:
    """Makes the report of a file whose scan was stopped after so many seconds."""
    scan = Scan()
    message = f"The check was stopped after {seconds:g} seconds (TOQUE_MAX_CHECK_SECONDS)"
    scan.findings.add("check_timed_out", None, message)
    return build_report(scan, None, None)


def add_equal_files(report: Report) -> None:
    """Adds the finding that the validation file is identical to this one."""
    code = "validation_equals_training"
    findings = Findings()
    findings.add(code, None, "The validation file is identical to this file")
    report.finding_counts.append(FindingCount(code=code, severity=FINDING_KINDS[code].severity, count=1))
    report.findings.extend(_shown(findings))


def _check_whole_file(scan: Scan, findings: Findings) -> None:
    """Adds the findings that concern all lines together."""
    examples = len(scan.line_numbers)
    if not examples and not any(FINDING_KINDS[code].severity == "error" for code in findings.by_code):
        findings.add("empty_file", None, "The file is empty: it has no training examples")
    elif 0 < examples < MIN_EXAMPLES:
        findings.add("too_few_examples", None, f"The file has {examples} examples")
    if 0 < scan.formats["preference"] < examples:
        pairs = scan.formats["preference"]
        findings.add(
            "mixed_formats", None, f"The file has {pairs:,} preference pairs among {examples:,} examples"
        )


def _counted(findings: Findings) -> list[FindingCount]:
    counts = (
        FindingCount(code=code, severity=FINDING_KINDS[code].severity, count=occurrences.count)
        for code, occurrences in findings.by_code.items()
    )
    return sorted(counts, key=lambda found: (_ORDER[found.severity], -found.count))


def _listed(findings: Findings) -> list[Finding]:
    return sorted(_shown(findings), key=lambda found: (_ORDER[found.severity], found.line or 0))


def _shown(findings: Findings) -> Iterator[Finding]:
    for code, occurrences in findings.by_code.items():
        severity, hint = FINDING_KINDS[code]
        for line, pointer, message, excerpt in occurrences.first:
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
    """Counts the duplicates, and adds the first few to the findings with the lines that they repeat."""
    import numpy as np  # noqa: PLC0415 - slow to import, and needed by reports only

    later, first = _repeats(scan.exact_digests)
    later_near, first_near = _repeats(scan.near_digests)
    is_near = ~np.isin(later_near, later)
    later_near, first_near = later_near[is_near], first_near[is_near]
    _add_repeats(scan, "duplicate_example", "repeats line", later, first)
    _add_repeats(scan, "near_duplicate", "nearly repeats line", later_near, first_near)
    return Duplicates(exact=len(later), near=len(later_near))


def _add_repeats(
    scan: Scan, code: str, words: str, later: NDArray[np.int64], first: NDArray[np.int64]
) -> None:
    shown = slice(MAX_SHOWN_PER_CODE)
    for place, original in zip(map(int, later[shown]), map(int, first[shown]), strict=True):
        scan.findings.add(code, scan.line_numbers[place], f"{words} {scan.line_numbers[original]}")
    if len(later):
        scan.findings.by_code[code].count = len(later)


def _repeats(digests: array[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the indices of repeated digests, in order, and the index at which each first appeared."""
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


def _measure_lengths(lengths: array[int], context: int) -> TokenLengths:
    import numpy as np  # noqa: PLC0415 - as above

    sizes = np.sort(np.frombuffer(lengths, np.uint32))
    edges = [_NARROWEST_BIN]
    while edges[-1] < sizes[-1]:
        edges.append(edges[-1] * 2)
    below = np.searchsorted(sizes, edges, side="right")
    counts = np.diff(below, prepend=0)

    def percentile(share: int) -> int:
        """Returns the length that `share` per cent of the examples do not exceed."""
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
