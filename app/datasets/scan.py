"""One pass over a training file, or a part of it: every line checked, counted and hashed.

What comes of a part can be pickled and merged with what comes of the next, so that large files are read by
several processes at once. A million examples take 24 MB: numbers only, no text but that of the findings.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import msgspec

from app.datasets.findings import MAX_SHOWN_PER_CODE, Findings
from app.datasets.formats import recognise_line
from app.datasets.lines import TOO_LONG, Line, UnreadableFileError, open_lines, split_lines
from app.datasets.token_counter import TokenCounter
from app.datasets.types import ChatExample, CompletionExample, Example, ExampleError, Format, Message
from app.datasets.unicode_scripts import count_letters

_BATCH_BYTES = 2**19
_SAMPLED = 8
_WHITE = b" \t"
_SQUASHED = bytes(ord(chr(byte).lower()) if byte < 128 else byte for byte in range(256))
_SIGNS = bytes(byte for byte in range(128) if not chr(byte).isalnum())
_SEPARATORS = (b"\xe2\x80\xa8", b"\xe2\x80\xa9")
_PLACES: dict[Format, str] = {"sharegpt": "/conversations", "preference": "/input/messages"}
_encoder = msgspec.json.Encoder()


def _numbers(kind: str) -> array[int]:
    return array(kind)


@dataclass
class Scan:
    """What a part of a file holds. The four arrays have an entry for each example, in their order."""

    sampled: int = 1
    """Of so many examples, the letters of one are counted."""
    lines: int = 0
    turns: int = 0
    tokens: int = 0
    target_tokens: int = 0
    longest_line: int = 0
    roles: Counter[str] = field(default_factory=Counter[str])
    formats: Counter[str] = field(default_factory=Counter[str])
    scripts: Counter[str] = field(default_factory=Counter[str])
    findings: Findings = field(default_factory=Findings)
    numbers: array[int] = field(default_factory=lambda: _numbers("I"))
    """Line numbers."""
    lengths: array[int] = field(default_factory=lambda: _numbers("I"))
    """Tokens; 0 where they are not counted."""
    digests: array[int] = field(default_factory=lambda: _numbers("Q"))
    """Equal for equal examples."""
    squashed: array[int] = field(default_factory=lambda: _numbers("Q"))
    """Equal for examples that are equal but for case, spaces and punctuation (ASCII)."""

    def merge(self, later: Scan) -> None:
        """Takes in what comes of the next part of the file."""
        self.findings.merge(later.findings, self.lines)
        self.numbers.extend(number + self.lines for number in later.numbers)
        for mine, theirs in (
            (self.lengths, later.lengths),
            (self.digests, later.digests),
            (self.squashed, later.squashed),
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
) -> Scan:
    """Reads the lines that begin in `[start, end)`. Raises nothing for what is wrong with them.

    Of a large file, the letters of one example in eight are counted, and stand for eight.
    """
    scan = Scan(sampled=_SAMPLED if is_large else 1)
    try:
        with open_lines(path) as file:
            batch: list[_Read] = []
            size = 0
            for read in _read(split_lines(file, start=start, end=end), scan):
                batch.append(read)
                size += len(read.content)
                if size > _BATCH_BYTES:
                    _count_tokens(batch, scan, counter, context)
                    batch, size = [], 0
            _count_tokens(batch, scan, counter, context)
    except UnreadableFileError as error:
        scan.findings.add(error.code, max(error.line, scan.lines), error.message)
    return scan


@dataclass(frozen=True, slots=True)
class _Read:
    number: int
    content: bytes
    format: Format
    example: Example


def _read(lines: Iterator[Line], scan: Scan) -> Iterator[_Read]:
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
        _take(scan, number, content, form, example)
        yield _Read(number, content, form, example)


def _take(scan: Scan, number: int, content: bytes, form: Format, example: Example) -> None:
    scan.formats[form] += 1
    scan.numbers.append(number)
    canonical = _encoder.encode(example)
    scan.digests.append(_digest(canonical))
    scan.squashed.append(_digest(canonical.translate(_SQUASHED, _SIGNS)))
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
        texts = _look_at_turns(scan, number, content, form, conversation)
        if not isinstance(example, ChatExample):
            for output in (example.preferred_output, example.non_preferred_output):
                scan.turns += len(output)
                scan.roles.update(message.role for message in output)
                texts += [message.text for message in output]
    if scan.digests[-1] % scan.sampled == 0:  # by content, not by place: parts of a file choose alike
        for text in texts:
            count_letters(text, text.encode(), scan.scripts, scan.sampled)


def _look_at_turns(
    scan: Scan, number: int, content: bytes, form: Format, messages: list[Message]
) -> list[str]:
    """Counts the turns, and notes an order that surprises; returns the texts."""
    place = _PLACES.get(form, "/messages")
    roles = [message.role for message in messages]
    scan.turns += len(roles)
    scan.roles.update(roles)
    spoken = next((index for index, role in enumerate(roles) if role not in ("system", "developer")), None)
    if spoken is not None and roles[spoken] == "assistant":
        scan.findings.add(
            "assistant_first",
            number,
            "starts with an assistant turn",
            pointer=f"{place}/{spoken}",
            content=content,
        )
    for index, (before, role) in enumerate(pairwise(roles), start=1):
        if role == before == "user":
            scan.findings.add(
                "consecutive_user_turns",
                number,
                "has two user turns one after the other",
                pointer=f"{place}/{index}",
                content=content,
            )
            break
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


def _count_tokens(batch: list[_Read], scan: Scan, counter: TokenCounter | None, context: int | None) -> None:
    if counter is None:
        scan.lengths.extend([0] * len(batch))
        return
    for read, counted in zip(batch, counter.count([read.example for read in batch]), strict=True):
        if isinstance(counted, ExampleError):
            scan.lengths.append(0)
            scan.findings.add(
                counted.code, read.number, counted.message, pointer=counted.pointer, content=read.content
            )
            continue
        scan.lengths.append(counted.longest)
        scan.tokens += counted.tokens
        scan.target_tokens += counted.targets
        if context is not None and counted.longest > context:
            scan.findings.add(
                "example_too_long",
                read.number,
                f"has {counted.longest:,} tokens; the base model's context is {context:,}",
                content=read.content,
            )
        for pointer, token in counter.special_tokens_in(read.example):
            scan.findings.add(
                "special_token_in_content",
                read.number,
                f"has the base model's control token {token} in a text",
                pointer=pointer,
                content=read.content,
            )


def _digest(content: bytes) -> int:
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")
