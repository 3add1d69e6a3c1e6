"""Scans a training file, or a part of one: checks, counts and hashes every line in one pass.

The scans of two consecutive parts can be pickled and merged, so that several processes can share a large
file. A scan of a million examples takes 24 MB: it keeps numbers, and no text except in findings.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import msgspec

from app.datasets.findings import MAX_SHOWN_PER_CODE, Findings
from app.datasets.formats import recognise_line
from app.datasets.lines import TOO_LONG, Line, UnreadableFileError, open_lines, split_lines
from app.datasets.rules import find_remarks
from app.datasets.token_counter import TokenCounter
from app.datasets.types import ChatExample, CompletionExample, Example, ExampleError, Format, Message, Role
from app.datasets.unicode_scripts import count_letters

_BATCH_BYTES = 2**19
_SCRIPT_SAMPLING = 8
_WHITE = b" \t"
_LOWERCASE = bytes(ord(chr(byte).lower()) if byte < 128 else byte for byte in range(256))
_PUNCTUATION = bytes(byte for byte in range(128) if not chr(byte).isalnum())
_SEPARATORS = (b"\xe2\x80\xa8", b"\xe2\x80\xa9")
_TURNS_POINTERS: dict[Format, str] = {"sharegpt": "/conversations", "preference": "/input/messages"}
_encoder = msgspec.json.Encoder()


def _numbers(kind: str) -> array[int]:
    return array(kind)


@dataclass
class Scan:
    """The statistics and findings of one part of a file. Each of the four arrays has an entry per example."""

    script_sampling: int = 1
    """Letters are counted in one of this many examples."""
    lines: int = 0
    turns: int = 0
    tokens: int = 0
    target_tokens: int = 0
    longest_line: int = 0
    roles: Counter[str] = field(default_factory=Counter[str])
    formats: Counter[str] = field(default_factory=Counter[str])
    scripts: Counter[str] = field(default_factory=Counter[str])
    findings: Findings = field(default_factory=Findings)
    line_numbers: array[int] = field(default_factory=lambda: _numbers("I"))
    """Line numbers, from 1."""
    lengths: array[int] = field(default_factory=lambda: _numbers("I"))
    """Tokens in the longest conversation; 0 where tokens are not counted."""
    exact_digests: array[int] = field(default_factory=lambda: _numbers("Q"))
    """Hashes that are equal for equal examples."""
    near_digests: array[int] = field(default_factory=lambda: _numbers("Q"))
    """Hashes that ignore case, white space and punctuation (of ASCII)."""

    def merge(self, later: Scan) -> None:
        """Adds the scan of the next part of the file to this one."""
        self.findings.merge(later.findings, self.lines)
        self.line_numbers.extend(number + self.lines for number in later.line_numbers)
        for mine, theirs in (
            (self.lengths, later.lengths),
            (self.exact_digests, later.exact_digests),
            (self.near_digests, later.near_digests),
        ):
            mine.extend(theirs)
        for mine, theirs in (
            (self.roles, later.roles),
            (self.formats, later.formats),
            (self.scripts, later.scripts),
        ):
            mine.update(theirs)
        self.lines += later.lines
        self.turns += later.turns
        self.tokens += later.tokens
        self.target_tokens += later.target_tokens
        self.longest_line = max(self.longest_line, later.longest_line)


def scan_lines(
    path: Path,
    counter: TokenCounter | None,
    context: int | None,
    *,
    start: int = 0,
    end: int | None = None,
    is_large: bool = False,
    max_lines: int | None = None,
) -> Scan:
    """Scans the lines that begin in `[start, end)`; whatever is wrong with them becomes a finding.

    So does the line after `max_lines`, and the scan ends there. In a large file, letters are counted in one
    example out of eight, and the counts are scaled up.
    """
    scan = Scan(script_sampling=_SCRIPT_SAMPLING if is_large else 1)
    try:
        with open_lines(path) as file:
            batch: list[_ParsedLine] = []
            size = 0
            for parsed in _parse_lines(split_lines(file, start=start, end=end, max_lines=max_lines), scan):
                batch.append(parsed)
                size += len(parsed.content)
                if size > _BATCH_BYTES:
                    _count_tokens(batch, scan, counter, context)
                    batch, size = [], 0
            _count_tokens(batch, scan, counter, context)
    except UnreadableFileError as error:
        scan.findings.add(error.code, max(error.line, scan.lines), error.message)
    return scan


@dataclass(frozen=True, slots=True)
class _ParsedLine:
    number: int
    content: bytes
    format: Format
    example: Example


def _parse_lines(lines: Iterator[Line], scan: Scan) -> Iterator[_ParsedLine]:
    findings = scan.findings
    for line in lines:
        scan.lines += line.count
        number, content = line.number, line.content
        if line.has_bom:
            findings.add("byte_order_mark", number, "The file begins with a byte order mark")
        if line.ends_in_crlf:
            findings.add("crlf_line_ends", number, "ends in CR LF", content=content)
        if line.is_too_long:
            findings.add("line_too_long", number, TOO_LONG, content=content)
            continue
        content = content.strip(_WHITE)
        if not content:
            for later in range(number, number + min(line.count, MAX_SHOWN_PER_CODE)):
                findings.add("empty_line", later, "is empty")
            findings.by_code["empty_line"].count += max(0, line.count - MAX_SHOWN_PER_CODE)
            continue
        if line.is_unfinished:
            findings.add("no_final_newline", number, "is the last and has no newline", content=content)
        scan.longest_line = max(scan.longest_line, len(content))
        try:
            form, example = recognise_line(content)
        except ExampleError as error:
            findings.add(error.code, number, error.message, pointer=error.pointer, content=content)
            continue
        _record_example(scan, number, content, form, example)
        yield _ParsedLine(number, content, form, example)


def _record_example(scan: Scan, number: int, content: bytes, form: Format, example: Example) -> None:
    scan.formats[form] += 1
    scan.line_numbers.append(number)
    canonical = _encoder.encode(example)
    scan.exact_digests.append(_digest(canonical))
    scan.near_digests.append(_digest(canonical.translate(_LOWERCASE, _PUNCTUATION)))
    if form in ("sharegpt", "alpaca"):
        name = "ShareGPT" if form == "sharegpt" else "Alpaca"
        scan.findings.add(
            "converted_format", number, f"has the format of {name}, and is read as chat", content=content
        )
    for separator in _SEPARATORS:
        if separator in content:
            _find_separator(scan, number, content, example, separator.decode())
    if isinstance(example, CompletionExample):
        scan.turns += 2
        texts = [example.prompt, example.completion]
    else:
        conversation = example.messages if isinstance(example, ChatExample) else example.input.messages
        texts = _record_turns(scan, number, content, form, conversation)
        if not isinstance(example, ChatExample):
            for output in (example.preferred_output, example.non_preferred_output):
                scan.turns += len(output)
                scan.roles.update(message.role for message in output)
                texts += [message.text for message in output]
    # Chosen by content, so that it does not matter how the file is split into parts.
    if scan.exact_digests[-1] % scan.script_sampling == 0:
        for text in texts:
            count_letters(text, text.encode(), scan.scripts, scan.script_sampling)


def _record_turns(
    scan: Scan, number: int, content: bytes, form: Format, messages: list[Message]
) -> list[str]:
    """Counts the turns and adds the remarks on their order; returns the turns' texts."""
    roles: list[Role] = [message.role for message in messages]
    scan.turns += len(roles)
    scan.roles.update(roles)
    for code, message, pointer in find_remarks(roles, _TURNS_POINTERS.get(form, "/messages")):
        scan.findings.add(code, number, message, pointer=pointer, content=content)
    return [message.text for message in messages]


def _find_separator(scan: Scan, number: int, content: bytes, example: Example, separator: str) -> None:
    pointer = ""
    if isinstance(example, ChatExample):
        at = next((i for i, message in enumerate(example.messages) if separator in message.text), None)
        pointer = f"/messages/{at}/content" if at is not None else ""
    scan.findings.add(
        "unicode_line_separator",
        number,
        f"has U+{ord(separator):04X} in a text: it is one line, not two",
        pointer=pointer,
        content=content,
    )


def _count_tokens(
    batch: list[_ParsedLine], scan: Scan, counter: TokenCounter | None, context: int | None
) -> None:
    if counter is None:
        scan.lengths.extend([0] * len(batch))
        return
    for line, counted in zip(batch, counter.count([line.example for line in batch]), strict=True):
        if isinstance(counted, ExampleError):
            scan.lengths.append(0)
            scan.findings.add(
                counted.code, line.number, counted.message, pointer=counted.pointer, content=line.content
            )
            continue
        scan.lengths.append(counted.longest)
        scan.tokens += counted.tokens
        scan.target_tokens += counted.targets
        if context is not None and counted.longest > context:
            scan.findings.add(
                "example_too_long",
                line.number,
                f"has {counted.longest:,} tokens; the base model's context is {context:,}",
                content=line.content,
            )
        for pointer, token in counter.special_tokens_in(line.example):
            scan.findings.add(
                "special_token_in_content",
                line.number,
                f"has the base model's control token {token} in a text",
                pointer=pointer,
                content=line.content,
            )


def _digest(content: bytes) -> int:
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")
