"""Every bad file gets its finding, from the validator, the API and the command alike."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import zstandard
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from openai import OpenAI
from typer.testing import CliRunner

from app.cli.main import app as command
from app.datasets.findings import BASE_MODEL_CODES, FINDING_KINDS
from app.datasets.formats import parse_line
from app.datasets.lines import UnreadableFileError, read_lines
from app.datasets.report import Progress, Report
from app.datasets.validation import PreparedBase, validate_file, validate_to_json
from tests.app.datasets import fuzz
from tests.support.corpus import BadFile, corpus
from tests.support.service import API_KEY, BASE_MODEL
from tests.support.training_files import chat_line, training_bytes

pytestmark = pytest.mark.one_database

CORPUS = corpus()
BIG_LINE = "100 MB in one line"


@pytest.fixture(scope="module")
def base(base_models_dir: Path) -> PreparedBase:
    return PreparedBase(BASE_MODEL, str(base_models_dir / BASE_MODEL), 2048)


def assert_found(report: dict[str, Any], bad: BadFile) -> None:
    found = [finding for finding in report["findings"] if finding["code"] == bad.code]
    assert found, (bad.name, [(f["code"], f["line"], f["message"]) for f in report["findings"]])
    first = found[0]
    assert (first["severity"], first["pointer"]) == (bad.severity, bad.pointer), (bad.name, first)
    if bad.line is not None or not bad.code.startswith(("truncated", "decompression")):
        assert first["line"] == bad.line, (bad.name, first)
    assert first["hint"] and first["message"]
    if bad.severity == "error":
        errors = {finding["code"] for finding in report["findings"] if finding["severity"] == "error"}
        assert errors == {bad.code}, bad.name


@pytest.mark.parametrize("bad", CORPUS, ids=lambda bad: bad.name)
def test_the_validator_names_it(bad: BadFile, base: PreparedBase, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(bad.make())
    report = validate_file(path, base)
    assert_found(report.model_dump(), bad)
    assert (report.first_error is not None) == (bad.severity == "error" and bad.code not in BASE_MODEL_CODES)
    if bad.severity != "error":  # what is only remarked on, every reader reads
        assert [parse_line(line) for _, line in read_lines(path)]


def test_every_code_of_the_table_is_met(base: PreparedBase) -> None:
    met = {bad.code for bad in CORPUS}
    elsewhere = {
        "validation_equals_training",
        "template_refused",
        "answer_not_after_prompt",
        "answer_rewritten",
        "too_many_lines",
        "check_timed_out",
    }
    assert met | elsewhere == set(FINDING_KINDS)


def test_an_unknown_role_is_named(base: PreparedBase, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "chef" * 20, "content": "x"}]}) + "\n", "utf-8")
    [finding] = validate_file(path, base).findings
    roles = "system, developer, user, assistant, tool"
    assert finding.message == f"has the unknown role {'chef' * 10!r}; roles are {roles}"


@pytest.mark.usefixtures("own_template")
def test_the_api_names_it(client: OpenAI, http: httpx2.Client) -> None:
    for bad in CORPUS:
        file = client.files.create(file=(f"{bad.name}.jsonl", bad.make()), purpose="fine-tune")
        assert file.status == "uploaded"
        file = client.files.wait_for_processing(file.id, poll_interval=0.02)
        report = http.get(f"/v1/files/{file.id}/validation").json()
        assert report["status"] == file.status
        assert_found(report, bad)
        is_bad = bad.severity == "error" and bad.code not in BASE_MODEL_CODES
        assert file.status == ("error" if is_bad else "processed")
        if not is_bad:
            continue
        first = next(found for found in report["findings"] if found["severity"] == "error")
        assert first["message"] in (file.status_details or "")
        with pytest.raises(openai.BadRequestError) as refused:
            client.fine_tuning.jobs.create(model=BASE_MODEL, training_file=file.id)
        assert (refused.value.code, refused.value.param) == (bad.code, "training_file")
        assert first["message"] in str(refused.value) and first["hint"] in str(refused.value)
    assert list(client.fine_tuning.jobs.list()) == []


def test_the_command_names_it(base_models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOQUE_MODELS_DIR", str(base_models_dir))
    monkeypatch.setenv("TOQUE_BASE_MODELS", json.dumps([{"name": BASE_MODEL, "source": "own/template"}]))
    path = tmp_path / "x.jsonl"
    for bad in CORPUS:
        if bad.name == BIG_LINE:
            continue
        path.write_bytes(bad.make())
        done = CliRunner().invoke(command, ["files", "validate", str(path), "--json"])
        assert_found(json.loads(done.stdout), bad)
        assert done.exit_code == (1 if bad.severity == "error" else 0), bad.name
        table = CliRunner().invoke(command, ["files", "validate", str(path)])
        assert table.exit_code == done.exit_code


def test_a_report_counts_what_is_there(client: OpenAI, http: httpx2.Client) -> None:
    lines = [chat_line(f"Сколько супов: {n}?", f"Soup {n}.") for n in range(20)]
    lines += [lines[0], json.dumps({"prompt": "汤", "completion": "好"})]
    file = client.files.create(file=("x.jsonl", "\n".join(lines).encode() + b"\n"), purpose="fine-tune")
    assert http.get(f"/v1/files/{file.id}/validation").json()["status"] in ("uploaded", "processed")
    client.files.wait_for_processing(file.id, poll_interval=0.02)
    report = http.get(f"/v1/files/{file.id}/validation").json()
    counts = report["counts"]
    assert (counts["lines"], counts["examples"], counts["turns"]) == (22, 22, 44)
    assert counts["roles"] == {"user": 21, "assistant": 21}
    assert counts["formats"] == {"chat": 21, "completion": 1}
    assert report["duplicates"] == {"exact": 1, "near": 0}
    assert report["scripts"]["Han"] == 2
    assert report["scripts"]["Cyrillic"] == 21 * len("Сколькосупов")
    assert report["scripts"]["Latin"] == 21 * len("Soup")
    assert report["base_model"] == BASE_MODEL
    lengths = report["token_lengths"]
    assert sum(entry["examples"] for entry in lengths["histogram"]) == 22
    assert 4 < counts["target_tokens"] < counts["tokens"]
    assert lengths["p50"] <= lengths["p90"] <= lengths["p99"] <= lengths["max"] < lengths["context"] == 2048
    named = http.get(f"/v1/files/{file.id}/validation?base_model=gpt-4o-mini").json()
    assert named == report
    unknown = http.get(f"/v1/files/{file.id}/validation?base_model=gpt-9")
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "base_model")


def test_only_training_files_have_a_report(client: OpenAI, http: httpx2.Client, other_client: OpenAI) -> None:
    notes = client.files.create(file=("x.txt", b"PK\x03\x04"), purpose="user_data")
    assert notes.status == "processed"
    answer = http.get(f"/v1/files/{notes.id}/validation")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_file_purpose")
    theirs = other_client.files.create(file=("x.jsonl", training_bytes()), purpose="fine-tune")
    assert http.get(f"/v1/files/{theirs.id}/validation").status_code == 404


def test_a_bad_million_makes_a_short_report(base: PreparedBase, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"messages": []}\n' * 100_000 + b"\n" * 100_000)
    report = validate_file(path, base)
    assert {found.code: found.count for found in report.finding_counts} == {
        "no_messages": 100_000,
        "empty_line": 100_000,
    }
    assert [found.line for found in report.findings] == [*range(1, 11), *range(100_001, 100_011)]
    assert len(report.model_dump_json()) < 20_000


@pytest.mark.parametrize(
    "pack",
    [gzip.compress, zstandard.compress, lambda raw: gzip.compress(raw[:500]) + gzip.compress(raw[500:])],
)
def test_packed_files_are_read_as_they_are(pack: Any, base: PreparedBase, tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain.jsonl", tmp_path / "packed.jsonl"
    plain.write_bytes(training_bytes(2000))
    packed.write_bytes(pack(plain.read_bytes()))
    assert validate_file(packed, base) == validate_file(plain, base)
    assert list(read_lines(packed)) == list(read_lines(plain))


def test_parts_make_the_same_report_as_the_whole(
    base: PreparedBase, tmp_path: Path, monkeypatch: Any
) -> None:
    path = tmp_path / "x.jsonl"
    bad = [b'{"messages": []}', b"\xff", b"", chat_line("again").encode(), chat_line("AGAIN!").encode()]
    lines = [
        bad[n % 5] if n % 7 == 0 else chat_line(f"q{n}\u2028", "a" * (n % 300)).encode() for n in range(3000)
    ]
    path.write_bytes(b"\n".join(lines))
    expected = validate_file(path, base)
    monkeypatch.setattr("app.datasets.validation._PART_BYTES", 40_001)
    assert validate_file(path, base, processes=2) == expected


def test_a_file_equal_to_its_held_out_file(tmp_path: Path, base_models_dir: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TOQUE_MODELS_DIR", str(base_models_dir))
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(training_bytes())
    arguments = ["files", "validate", str(tmp_path / "a.jsonl"), "--json"]
    done = CliRunner().invoke(command, [*arguments, "--validation-file", str(tmp_path / "b.jsonl")])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["findings"][-1]["code"] == "validation_equals_training"


def test_the_upload_command_shows_the_findings(service: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TOQUE_API_KEY", API_KEY)
    path = tmp_path / "x.jsonl"
    path.write_bytes(training_bytes() + b'{"messages": []}\n')
    url = ["--base-url", f"{service.url}/v1"]
    done = CliRunner().invoke(command, ["files", "upload", str(path), *url])
    assert done.exit_code == 1
    assert "no_messages" in done.stdout and "/messages" in done.stdout and "13" in done.stdout
    done = CliRunner().invoke(command, ["files", "upload", str(path), "--no-wait", "--json", *url])
    assert done.exit_code == 0
    file = json.loads(done.stdout)
    assert file["status"] == "uploaded"
    done = CliRunner().invoke(command, ["files", "validation", file["id"], "--json", *url])
    assert json.loads(done.stdout)["file_id"] == file["id"]


def test_a_table_becomes_examples(tmp_path: Path) -> None:
    table = tmp_path / "x.csv"
    table.write_text(
        '\ufeffq;a;s\r\n"Leek;\r\nor not?";Soup.;You cook.\r\n\r\nPie?;Yes.;\r\n', "utf-8", newline=""
    )
    columns = ["--prompt", "q", "--completion", "a"]
    out = tmp_path / "x.jsonl"
    done = CliRunner().invoke(
        command, ["files", "convert", str(table), *columns, "--system", "s", "-o", str(out)]
    )
    assert done.exit_code == 0, done.output
    made = [[(m.role, m.content) for m in parse_line(line).messages] for _, line in read_lines(out)]  # pyright: ignore
    assert made == [
        [("system", "You cook."), ("user", "Leek;\r\nor not?"), ("assistant", "Soup.")],
        [("user", "Pie?"), ("assistant", "Yes.")],
    ]
    done = CliRunner().invoke(command, ["files", "convert", str(table), "-o", str(tmp_path / "y")])
    assert done.exit_code == 1
    assert "'prompt'" in done.stderr and "'q'" in done.stderr
    assert not (tmp_path / "y").exists() and not (tmp_path / "y.part").exists()


@given(
    st.binary(max_size=300)
    | st.lists(
        st.sampled_from(
            [
                b"\x1f\x8b\x08",
                b"\x28\xb5\x2f\xfd",
                b"\n",
                b"{",
                b"}",
                b'"',
                b"[",
                b"\\u0000",
                b"\xff",
                b'"messages":',
                b",",
                b"PK\x03\x04",
            ]
        ),
        max_size=30,
    ).map(b"".join)
)
@hypothesis_settings(max_examples=300)
def test_any_bytes_get_a_report(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content)
    report = validate_file(path, None)
    assert Report.model_validate_json(report.model_dump_json()) == report
    assert report.counts.examples == 0 or not report.errors or report.first_error
    if not report.errors:
        assert [parse_line(line) for _, line in read_lines(path)]
    else:
        with pytest.raises(ValueError):
            lines = [parse_line(line) for _, line in read_lines(path)]
            if not lines:
                raise UnreadableFileError("empty_file", "no examples")


def test_a_short_fuzz(tmp_path: Path) -> None:
    """The long one is `make fuzz`."""
    chance = random.Random(5)
    for _ in range(4):
        lines = [fuzz.damaged(chance, [chat_line().encode()]) for _ in range(500)]
        assert 0 < sum(fuzz.check_line(line) for line in lines) < 500
        fuzz.check_file(tmp_path / "x.jsonl", b"\n".join(lines), chance)


TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=40
).filter(lambda text: bool(text.strip()))
CHATS = st.lists(st.tuples(TEXT, TEXT, st.sampled_from([None, 1])), min_size=1, max_size=3)


@given(st.lists(CHATS, min_size=1, max_size=12), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
@hypothesis_settings(max_examples=100)
def test_valid_files_survive_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, chats: Any, newline: bytes, escaped: bool
) -> None:
    lines: list[dict[str, Any]] = []
    for turns in chats:
        messages: list[dict[str, Any]] = []
        for question, answer, weight in turns:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer} | ({"weight": weight} if weight else {}))
        lines.append({"messages": messages})
    path = tmp_path_factory.getbasetemp() / "valid.jsonl"
    path.write_bytes(newline.join(json.dumps(line, ensure_ascii=escaped).encode() for line in lines))
    report = validate_file(path, None)
    assert (report.errors, report.counts.examples) == (0, len(lines))
    read = [
        {
            "messages": [
                {"role": m.role, "content": m.content} | ({"weight": m.weight} if m.weight else {})
                for m in parse_line(line).messages
            ]
        }  # pyright: ignore
        for _, line in read_lines(path)
    ]
    assert read == lines


def test_what_was_found_so_far_is_written_while_a_large_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.nice", lambda _: 0)  # the tests that come after it are not to be slow
    monkeypatch.setattr("app.datasets.validation._PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr("app.datasets.validation._PART_BYTES", 2**12)
    written: list[Progress] = []
    rename = Path.rename

    def record(self: Path, target: Path) -> Path:
        written.append(Progress.model_validate_json(self.read_bytes()))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", record)
    path, progress = tmp_path / "x.jsonl", tmp_path / "progress.json"
    path.write_bytes(b'{"messages": []}\n' + training_bytes(200))
    found = validate_to_json(str(path), None, 2, 10**6, None, str(progress))
    assert found is not None
    report = Report.model_validate_json(found)
    size = path.stat().st_size
    assert [told.bytes_read for told in written] == [
        min(size, part * 2**12) for part in range(1, -(-size // 2**12) + 1)
    ]
    assert [told.lines for told in written] == sorted(told.lines for told in written)
    assert written[0].findings == report.findings[:1]
    assert (written[-1].lines, written[-1].examples) == (report.counts.lines, report.counts.examples)
    assert Progress.model_validate_json(progress.read_bytes()) == written[-1]
