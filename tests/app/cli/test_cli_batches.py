"""`toque batches` against a service without an engine."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.batch_files import line, lines
from tests.support.command import Service


def test_a_batch_is_created_listed_and_cancelled(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text(lines(range(3)))
    created = json.loads(service.run("batches", "create", path, "--json").stdout)
    assert (created["object"], created["endpoint"]) == ("batch", "/v1/chat/completions")
    listed = json.loads(service.run("batches", "list", "--json").stdout)
    assert created["id"] in [each["id"] for each in listed]
    assert json.loads(service.run("batches", "cancel", created["id"], "--json").stdout)["status"] in (
        "cancelling",
        "cancelled",
    )
    shown = service.run("batches", "get", created["id"])
    assert created["id"] in shown.stdout


def test_what_is_wrong_with_a_file_is_shown_with_its_line(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text(line(1) + line(1))
    failed = service.run("batches", "create", path, "--wait")
    assert failed.exit_code == 1
    assert "Line 1 has the same 'custom_id'" in " ".join(failed.stdout.split())
    assert "The batch is failed." in failed.stderr
