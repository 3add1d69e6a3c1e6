"""Pages of lines: every line is on one page, whatever the file looks like and however it is read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.datasets import line_pages
from app.datasets.line_pages import START, Page, Place, find_line, page_before, read_page
from app.datasets.line_search import search_lines, texts_of

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
LINES = st.lists(
    st.one_of(
        st.just(b""),
        st.just(b" \t"),
        st.binary(max_size=30).map(lambda content: content.replace(b"\n", b"x")),
        st.builds(
            lambda text, ascii_only: json.dumps(
                {"messages": [{"role": "user", "content": text}]}, ensure_ascii=ascii_only
            ).encode(),
            WORDS,
            st.booleans(),
        ),
    ),
    max_size=30,
)


def write(folder: str, lines: list[bytes], end: bytes = b"\n") -> Path:
    path = Path(folder) / "x.jsonl"
    path.write_bytes(b"{}\n" + b"\n".join(lines) + end)
    return path


def plain_lines(path: Path) -> list[tuple[int, int, bytes]]:
    """Number, offset and content of every line that is not empty."""
    found: list[tuple[int, int, bytes]] = []
    offset = 0
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip(b" \t\r\n"):
            found.append((number, offset, line.strip(b" \t\r\n")))
        offset += len(line) + 1
    return found


def contents(page: Page) -> list[tuple[int, int, bytes]]:
    return [(line.at.line, line.at.offset, line.content) for line in page.lines]


@given(LINES, st.sampled_from([b"", b"\n", b"\r\n"]), st.integers(1, 5), st.integers(1, 60))
def test_paging_sees_every_line_once(lines: list[bytes], end: bytes, limit: int, page_bytes: int) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_pages, "PAGE_BYTES", page_bytes)
        path = write(folder, lines, end)
        seen: list[tuple[int, int, bytes]] = []
        place: Place | None = START
        while place is not None:
            page = read_page(path, place, limit=limit)
            assert len(page.lines) <= limit
            seen += contents(page)
            assert page.next is None or page.next.offset > place.offset
            place = page.next
        assert seen == plain_lines(path)


@given(LINES, st.integers(1, 5))
def test_paging_backwards_sees_the_same(lines: list[bytes], limit: int) -> None:
    with TemporaryDirectory() as folder:
        path = write(folder, lines)
        place = Place(path.stat().st_size, path.read_bytes().count(b"\n") + 1)
        seen: list[tuple[int, int, bytes]] = []
        while (page := page_before(path, place, limit=limit)).lines:
            assert page.next == place
            seen = contents(page) + seen
            place = page.lines[0].at
        assert seen == plain_lines(path)


@given(LINES, st.integers(1, 40))
def test_a_line_is_found_by_its_number(lines: list[bytes], number: int) -> None:
    with TemporaryDirectory() as folder:
        path = write(folder, lines)
        place = find_line(path, number)
        all_lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
        if number > len(all_lines):
            assert place is None
            return
        assert place is not None
        assert place == (sum(len(line) + 1 for line in all_lines[: number - 1]), number)


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_count_of_lines_that_is_out_of_time_goes_on_where_it_stopped(
    is_packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_pages, "_CHUNK", 64)
    text = b"".join(b"%d\n" % number for number in range(1000))
    path = tmp_path / "lines.jsonl"
    path.write_bytes(gzip.compress(text) if is_packed else text)
    found = [START]
    while found[-1].line < 700:
        place = find_line(path, 700, start=found[-1], seconds=-1.0)
        assert place is not None and place.offset > found[-1].offset
        found.append(place)
    assert found[-1] == (text.index(b"\n699\n") + 1, 700)
    assert len(found) > 30
    assert find_line(path, 1001, start=found[1], seconds=60.0) is None


@given(LINES, st.data(), st.integers(1, 4))
def test_a_search_finds_what_a_plain_scan_finds(lines: list[bytes], data: st.DataObject, limit: int) -> None:
    words = data.draw(st.one_of(WORDS.filter(bool), st.sampled_from(["s", "k", "ß", "é", '"', "\\", "/"])))
    with TemporaryDirectory() as folder:
        path = write(folder, lines)
        found: list[int] = []
        place: Place | None = START
        while place is not None:
            result = search_lines(str(path), words, place, limit, data.draw(st.sampled_from([0.0, 60.0])))
            found += [line.at.line for line in result.lines]
            place = result.next
        assert result.offset == path.stat().st_size
        assert found == [
            number
            for number, _, line in plain_lines(path)
            if any(words.casefold() in text.casefold() for text in texts_of(line))
        ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (rb'{"content": "caf\u00e9"}', "CAFÉ"),
        (rb'{"content": "caf\u0065"}', "cafe"),
        (rb'{"content": "http:\/\/a.b"}', "http://a"),
        (rb'{"content": "say \"hi\" now"}', 'say "hi"'),
        (rb'{"content": "one\ntwo"}', "one\ntwo"),
        ('{"content": "Straße"}'.encode(), "STRASSE"),
        ('{"content": "100 \N{KELVIN SIGN}"}'.encode(), "k"),
        (rb'{"content": "a", "tools": [{"arguments": "{\"city\": \"Oslo\"}"}]}', '"city": "oslo"'),
        (b'{"content": "not json', "not json"),
    ],
)
def test_words_are_found_however_they_are_written(line: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"content": "other"}\n' + line + b"\n")
    assert [found.at.line for found in search_lines(str(path), words, START, 10, 60.0).lines] == [2]


def test_names_of_fields_and_roles_are_not_searched(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"messages": [{"role": "user", "content": "x"}]}\n')
    for name in ("messages", "user", "content"):
        assert not search_lines(str(path), name, START, 10, 60.0).lines


def test_a_line_that_is_too_long_is_passed_over_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_pages, "MAX_LINE_BYTES", 50)
    monkeypatch.setattr(line_pages, "_CHUNK", 20)
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n{' + b"x" * 200 + b"}\n" + b'{"b": 2}\n')
    result = search_lines(str(path), "b", START, 10, 0.0)
    places = [result.next]
    while places[-1] is not None:
        places.append(search_lines(str(path), "b", places[-1], 10, 0.0).next)
    assert len(places) > 5  # it stopped amid the line, each time
    page = read_page(path, START, limit=10)
    assert [(line.at.line, line.content, line.is_too_long) for line in page.lines] == [
        (1, b'{"a": 1}', False),
        (2, b"", True),
        (3, b'{"b": 2}', False),
    ]
    assert contents(read_page(path, Place(30, 2), limit=10)) == [(3, path.stat().st_size - 9, b'{"b": 2}')]


def test_of_a_compressed_file_the_first_part_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jsonl.gz"
    lines = [b'{"number": "%d"}' % number for number in range(100)]
    path.write_bytes(gzip.compress(b"\n".join(lines) + b"\n"))
    page = read_page(path, START, limit=30)
    assert page.next is not None
    rest = read_page(path, page.next, limit=100)
    assert [line.content for line in page.lines + rest.lines] == lines
    assert not rest.is_cut and rest.next is None
    monkeypatch.setattr(line_pages, "MAX_UNPACKED_BYTES", 500)
    page = read_page(path, START, limit=100)
    assert page.is_cut and page.next is None
    assert page.lines[-1].at.offset < 500
    assert search_lines(str(path), "99", START, 10, 60.0).is_cut
    assert find_line(path, 90) is None
