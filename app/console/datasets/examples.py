"""`/console/datasets/{file_id}/examples`: the lines of a file, page by page, and a search in them.

A page is a place in the file (`app.datasets.line_pages`), so that nothing is read but what is shown. Where
only a line's number is known, line ends are counted for a moment, then a page tells how far that has come. A
search runs in a child process. Both answer after a second at most, and the page asks them to go on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

from anyio import CapacityLimiter
from fastapi import APIRouter, Query, Response
from fastapi.concurrency import run_in_threadpool

from app.console.datasets.learned import list_tokens
from app.console.datasets.shown_line import Look, ShownLine, pretty_json, show_line
from app.console.page import Page, PageDep
from app.core.child_process import run_in_child
from app.core.database import Database
from app.core.errors import InvalidRequestError, NotFoundError
from app.core.settings import BaseModelEntry
from app.core.threads import entered_in_thread
from app.datasets.chat_template import ChatTemplate
from app.datasets.line_pages import START, Piece, Place, find_line, page_before, read_page
from app.datasets.line_search import search_lines
from app.datasets.lines import UnreadableFileError
from app.dependencies import DatabaseDep
from app.files import checks, service
from app.files.models import File
from app.models.catalogue import Catalogue, chat_template, prepared_names, reading_files

router = APIRouter(prefix="/{file_id}", include_in_schema=False)

_LINES = 10
_SEARCH_SECONDS = 1.0
_COUNT_SECONDS = 1.0
_FIRST_COUNT_SECONDS = 0.1
"""How long lines are counted before there is a page: hundreds of megabytes, if they were read lately."""
_MOST_TOKENS = 3_000
_MOST_CHARACTERS = 100_000
_TOKENIZED_BYTES = 256 * 2**10
_searches = CapacityLimiter(1)
"""One search of this process at a time: each gives way after a second."""

Offset = Annotated[int, Query(ge=0, le=2**62)]
LineNumber = Annotated[int, Query(ge=1, le=2**40)]
Words = Annotated[str, Query(max_length=200)]
BaseName = Annotated[str | None, Query(max_length=255)]


@router.get("/examples")
def list_examples(
    file_id: str,
    page: PageDep,
    database: DatabaseDep,
    line: LineNumber = 1,
    offset: Offset | None = None,
    before: bool = False,
    q: Words = "",
    base_model: BaseName = None,
) -> Response:
    """Show the examples from a line on, or those before it; with words to search for, where to find them."""
    opened = _open(page, database, file_id, base_model)
    if q.strip():
        return page.render("datasets/search.html.jinja", opened=opened, words=q)
    try:
        with service.content(page.context.storage, opened.file) as path:
            place = _find(path, line, START, _FIRST_COUNT_SECONDS) if offset is None else Place(offset, line)
            if place.line < line:
                return _counting(page, opened, place, line, is_alone=False)
            shown = page_before(path, place, limit=_LINES) if before else read_page(path, place, limit=_LINES)
    except UnreadableFileError as error:
        return page.render("datasets/unreadable.html.jinja", opened=opened, words="", problem=error)
    return page.render(
        "datasets/examples.html.jinja",
        opened=opened,
        words="",
        shown=shown,
        lines=_show(shown.lines, Look(opened.template)),
        first=shown.lines[0].at if shown.lines else place,
        pretty_json=pretty_json,
    )


@router.get("/search")
async def search_examples(
    file_id: str,
    page: PageDep,
    database: DatabaseDep,
    q: Annotated[str, Query(max_length=200, pattern=r"\S")],
    line: LineNumber = 1,
    offset: Offset = 0,
    shown: Annotated[int, Query(ge=0, le=2**40)] = 0,
    base_model: BaseName = None,
) -> Response:
    """Show what was found in a second; the page goes on where it stopped, until enough is `shown`."""
    opened = await run_in_threadpool(_open, page, database, file_id, base_model)
    try:
        async with entered_in_thread(service.content(page.context.storage, opened.file)) as path:
            found = await run_in_child(
                search_lines,
                str(path),
                q.strip(),
                Place(offset, line),
                _LINES,
                _SEARCH_SECONDS,
                limiter=_searches,
            )
    except UnreadableFileError as error:
        raise InvalidRequestError(f"{error.message}.", code=error.code) from None
    lines = await run_in_threadpool(_show, found.lines, Look(opened.template, q.strip()))
    return await run_in_threadpool(
        page.render,
        "datasets/_found.html.jinja",
        opened=opened,
        words=q.strip(),
        found=found,
        lines=lines,
        total=shown + len(lines),
        goes_on_by_itself=len(lines) + shown % _LINES < _LINES,
        pretty_json=pretty_json,
    )


@router.get("/lines/{line}")
def read_line(
    file_id: str,
    line: int,
    page: PageDep,
    database: DatabaseDep,
    offset: Offset | None = None,
    base_model: BaseName = None,
) -> Response:
    """Show one line: each token, and the line as it is in the file."""
    opened = _open(page, database, file_id, base_model)
    template = opened.template
    try:
        with service.content(page.context.storage, opened.file) as path:
            place = (
                _find(path, max(1, line), START, _FIRST_COUNT_SECONDS)
                if offset is None
                else Place(offset, line)
            )
            if place.line < line:
                return _counting(page, opened, place, line, is_alone=True)
            found = read_page(path, place, limit=1).lines
    except UnreadableFileError as error:
        raise InvalidRequestError(f"{error.message}.", code=error.code) from None
    if not found:
        raise NotFoundError(f"There is nothing on line {line:,}.", code="line_not_found")
    look = Look(template, most_characters=_MOST_CHARACTERS, tokenized_bytes=_TOKENIZED_BYTES)
    shown = show_line(found[0], look)
    tokens = [
        list_tokens(template, reading.spelled, _MOST_TOKENS)
        for reading in shown.readings
        if template is not None and reading.spelled is not None
    ]
    raw = found[0].content[:_MOST_CHARACTERS].decode("utf-8", "replace")
    return page.render(
        "datasets/line.html.jinja",
        opened=opened,
        line=shown,
        tokens=tokens,
        raw=pretty_json(raw),
        pretty_json=pretty_json,
    )


@router.get("/place")
def find_place(
    file_id: str,
    page: PageDep,
    database: DatabaseDep,
    line: LineNumber,
    offset: Offset,
    counted: LineNumber,
    is_alone: bool = False,
    base_model: BaseName = None,
) -> Response:
    """Go on to count lines at an offset, where `counted` is the line, and open the one that is looked for."""
    with database.reader() as session:
        file = service.get_file(session, page.context.project_id, file_id)
    try:
        with service.content(page.context.storage, file) as path:
            place = _find(path, line, Place(offset, counted), _COUNT_SECONDS)
    except UnreadableFileError as error:
        raise InvalidRequestError(f"{error.message}.", code=error.code) from None
    if place.line < line:
        query = _place_query(place, line, base_model, is_alone=is_alone)
        return page.render("datasets/_counting.html.jinja", file=file, place=place, line=line, query=query)
    asked = {"offset": place.offset} | ({"base_model": base_model} if base_model else {})
    address = f"lines/{line}?" if is_alone else f"examples?line={line}&"
    return page.redirect(f"/console/datasets/{file.id}/{address}{urlencode(asked)}")


def _find(path: Path, line: int, start: Place, seconds: float) -> Place:
    """Return where the line is, or how far counting has come.

    Raises:
        NotFoundError: the file has fewer lines.
    """
    place = find_line(path, line, start=start, seconds=seconds)
    if place is None:
        raise NotFoundError(f"The file has no line {line:,}.", code="line_not_found", param="line")
    return place


def _counting(page: Page, opened: _Opened, place: Place, line: int, *, is_alone: bool) -> Response:
    query = _place_query(place, line, opened.base.name if opened.base else None, is_alone=is_alone)
    return page.render(
        "datasets/counting.html.jinja", opened=opened, words="", place=place, line=line, query=query
    )


def _place_query(place: Place, line: int, base_model: str | None, *, is_alone: bool) -> str:
    asked = {"line": line, "offset": place.offset, "counted": place.line, "is_alone": is_alone}
    return urlencode(asked | ({"base_model": base_model} if base_model else {}))


def _show(pieces: list[Piece], look: Look) -> list[ShownLine]:
    return [show_line(piece, look) for piece in pieces]


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file, and the base model as which its lines are read."""

    file: File
    base: BaseModelEntry | None
    """None where none is prepared on this machine."""
    bases: list[str]
    """The names of those that are."""
    template: ChatTemplate | None


def _open(page: Page, database: Database, file_id: str, base_model: str | None) -> _Opened:
    """Find the file, and the base model that is named, else the one that the file was checked for."""
    settings = page.context.settings
    with database.reader() as session:
        file = service.get_file(session, page.context.project_id, file_id)
        catalogue = Catalogue.read(session, settings)
        bases = prepared_names(session, settings)
        report = checks.report_of(session, file.id) if base_model is None else None
    name = base_model or (report.base_model if report else None) or next(iter(bases), None)
    if name is None:
        return _Opened(file, None, bases, None)
    base = catalogue.get(name, param="base_model")
    with reading_files(base):
        return _Opened(file, base, bases, chat_template(settings, base))
