"""Validates a training file of any size, in several processes where that is worth it."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import lru_cache
from hashlib import file_digest
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from app.core.parent_death import die_with_parent
from app.datasets.chat_template import TemplateOptions
from app.datasets.lines import is_compressed, too_many_lines, unpacks_beyond
from app.datasets.scan import Scan, scan_lines
from app.datasets.token_counter import Shortcuts, TokenCounter

if TYPE_CHECKING:
    from app.datasets.report import Report

Watch = Callable[[Scan, int], None]
"""Is told of what was found so far, and in how many bytes of the file."""
_PART_BYTES = 8 * 2**20
_LARGE_BYTES = 32 * 2**20
"""In larger files, letters are counted in one example out of eight."""
_PROGRESS_SECONDS = 1.0


class PreparedBase(msgspec.Struct, frozen=True):
    """A base model that is prepared on this machine; its tokenizer counts the tokens."""

    name: str
    folder: str
    context: int
    template: TemplateOptions = TemplateOptions()


def validate_file(
    path: Path,
    base: PreparedBase | None,
    *,
    processes: int = 1,
    max_lines: int | None = None,
    watch: Watch | None = None,
) -> Report:
    """Returns the report on a training file; whatever is wrong with the file is a finding, not an exception.

    A file that has more than `max_lines` is read no further, and that is a finding, too. With several
    processes a large file is read in parts, by processes that this call starts.
    """
    scan = scan_file(path, base, processes=processes, max_lines=max_lines, watch=watch)
    from app.datasets.report import build_report  # noqa: PLC0415 - not needed in processes that only scan

    return build_report(scan, base.name if base else None, base.context if base else None)


def scan_file(
    path: Path,
    base: PreparedBase | None,
    *,
    processes: int = 1,
    max_lines: int | None = None,
    watch: Watch | None = None,
) -> Scan:
    """Scans a training file; the report is made from the result. `watch` is called after each part."""
    scan = Scan()
    for number, part in enumerate(_scan_parts(path, base, processes, max_lines), start=1):
        scan.merge(part)
        if watch is not None:
            watch(scan, number * _PART_BYTES)
        if max_lines is not None and scan.lines > max_lines:
            error = too_many_lines(max_lines)
            scan.findings.add(error.code, error.line, error.message)
        if "too_many_lines" in scan.findings.by_code:
            break
    return scan


def flag_equal_files(report: Report, training: Path, validation: Path) -> None:
    """Adds a finding to the training file's report if the validation file is identical."""
    from app.datasets.report import add_equal_files  # noqa: PLC0415 - as above

    with training.open("rb") as one, validation.open("rb") as other:
        if file_digest(one, "sha256").digest() == file_digest(other, "sha256").digest():
            add_equal_files(report)


def validate_to_json(
    path: str,
    base: PreparedBase | None,
    processes: int,
    max_lines: int,
    max_bytes: int | None = None,
    progress_path: str | None = None,
) -> bytes | None:
    """Runs `validate_file` in a child process, at low priority; returns the report as JSON.

    Returns None at once if the file unpacks into more than `max_bytes`. Meanwhile, what was found so far is
    written to `progress_path` every second, as JSON of a `Progress`.
    """
    os.nice(10 if os.nice(0) < 10 else 0)
    if max_bytes is not None and unpacks_beyond(Path(path), max_bytes):
        return None
    watch = _progress_writer(Path(path), Path(progress_path)) if progress_path is not None else None
    report = validate_file(Path(path), base, processes=processes, max_lines=max_lines, watch=watch)
    return report.model_dump_json().encode()


def _progress_writer(path: Path, progress: Path) -> Watch:
    from app.datasets.report import Progress  # noqa: PLC0415 - as above

    size, written_at = path.stat().st_size, time.monotonic()

    def write(scan: Scan, read: int) -> None:
        nonlocal written_at
        if time.monotonic() < written_at + _PROGRESS_SECONDS:
            return
        found = Progress.of(scan, min(read, size), size)
        aside = progress.with_suffix(".new")
        aside.write_text(found.model_dump_json(), "utf-8")
        aside.rename(progress)  # whoever reads it finds all of it
        written_at = time.monotonic()

    return write


def _scan_parts(
    path: Path, base: PreparedBase | None, processes: int, max_lines: int | None
) -> Iterator[Scan]:
    """Yields the scans of the parts in order. This process scans too: idle, it would waste its memory."""
    size = path.stat().st_size
    is_large = size > _LARGE_BYTES
    shortcuts = _verify_shortcuts(base.folder, base.template) if base is not None else None
    if processes == 1 or size < 2 * _PART_BYTES or is_compressed(path):
        yield _scan_part(path, base, shortcuts, 0, None, is_large, max_lines)
        return
    starts = iter(range(0, size, _PART_BYTES))
    done: deque[Scan | Future[Scan]] = deque()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes - 1, context, initializer=die_with_parent) as pool:
        for start in starts:
            part = (path, base, shortcuts, start, start + _PART_BYTES, is_large, max_lines)
            under_way = sum(isinstance(one, Future) and not one.done() for one in done)
            done.append(
                pool.submit(_scan_part, *part) if under_way < 2 * (processes - 1) else _scan_part(*part)
            )
            while done and not (isinstance(done[0], Future) and not done[0].done()):
                yield _finished(done.popleft())
        while done:
            yield _finished(done.popleft())


def _finished(part: Scan | Future[Scan]) -> Scan:
    return part.result() if isinstance(part, Future) else part


def _scan_part(
    path: Path,
    base: PreparedBase | None,
    shortcuts: Shortcuts | None,
    start: int,
    end: int | None,
    is_large: bool,
    max_lines: int | None,
) -> Scan:
    counter = context = None
    if base is not None and shortcuts is not None:
        counter, context = _load_counter(base, shortcuts), base.context
    # In a thread of its own, since `fastokens` caches the words that a thread has seen, without a limit.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(
            scan_lines,
            path,
            counter,
            context,
            start=start,
            end=end,
            is_large=is_large,
            max_lines=max_lines,
        ).result()


_counters: dict[tuple[str, TemplateOptions], TokenCounter] = {}


def _load_counter(base: PreparedBase, shortcuts: Shortcuts) -> TokenCounter:
    """Returns the base model's counter. A process keeps the last one, since loading takes as long as scanning
    a few megabytes."""
    key = base.folder, base.template
    if key not in _counters:
        _counters.clear()
        _counters[key] = TokenCounter(Path(base.folder), shortcuts, base.template)
    return _counters[key]


@lru_cache(maxsize=4)
def _verify_shortcuts(folder: str, options: TemplateOptions) -> Shortcuts:
    return Shortcuts.verify(Path(folder), options)
