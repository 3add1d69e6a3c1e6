"""`toque jobs check`, which needs no service, and hold-outs made by the command."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.command import TOQUE, Service
from tests.support.service import BASE_MODEL
from tests.support.training_files import chat_line, training_bytes


@pytest.fixture
def environment(base_models_dir: Path, tmp_path: Path) -> dict[str, str]:
    return os.environ | {"TOQUE_MODELS_DIR": str(base_models_dir), "TOQUE_DATA_DIR": str(tmp_path / "none")}


def check(environment: dict[str, str], *arguments: object, code: int = 0) -> str:
    command = [*TOQUE, "jobs", "check", *map(str, arguments), "--base-model", BASE_MODEL]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_file_is_checked_offline(environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_bytes(training_bytes(40))
    options = ["--validation-file", "auto", "--split-share", "0.2", "--n-epochs", "2"]
    found = json.loads(check(environment, file, *options, "--json"))
    assert (found["ready"], found["training_file"], found["steps"]) == (True, "train.jsonl", 16)
    assert found["validation_split"] == {"share": 0.2, "seed": 0, "examples": 32, "held_out": 8}
    assert found["time"]["basis"]["kind"] == "default"
    assert not (tmp_path / "none").exists(), "it makes no database"


def test_people_see_target_tokens_in_colour(environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_bytes(training_bytes(12))
    environment = {**environment, "FORCE_COLOR": "1"}
    environment.pop("NO_COLOR", None)
    shown = check(environment, file)
    assert "\x1b[1;32mSoup 0.<|im_end|>\x1b[0m" in shown
    assert "\x1b[1;32mWhat is soup" not in shown
    assert "a rough guess" in shown
    assert "Ready to train." in shown


def test_pairs_are_checked_offline(environment: dict[str, str], tmp_path: Path) -> None:
    pair = {
        "input": {"messages": [{"role": "user", "content": "What is soup?"}]},
        "preferred_output": [{"role": "assistant", "content": "Leek."}],
        "non_preferred_output": [{"role": "assistant", "content": "It depends."}],
    }
    file = tmp_path / "pairs.jsonl"
    file.write_text((json.dumps(pair) + "\n") * 12)
    found = json.loads(check(environment, file, "--method", "dpo", "--beta", 0.2, "--json"))
    assert (found["ready"], found["refused"]["total"]) == (True, 0)
    assert (found["method"]["type"], found["hyperparameters"]["beta"]) == ("dpo", 0.2)
    assert found["tokens_per_epoch"] > 12 * (found["lengths"]["max"] + 10), "both answers count"
    assert "12 more" not in check(environment, file, code=1)


def test_control_characters_are_seen_and_move_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    example = {
        "messages": [
            {"role": "user", "content": "\x08\x0c\x1b[31mWhat?"},
            {"role": "assistant", "content": "Soup\x08."},
        ]
    }
    file.write_bytes(training_bytes(11).rstrip() + b"\n" + json.dumps(example).encode() + b"\n")
    file.write_bytes(b"".join(reversed(file.read_bytes().splitlines(keepends=True))))
    environment = {**environment, "FORCE_COLOR": "1"}
    environment.pop("NO_COLOR", None)
    shown = check(environment, file)
    assert "␈␌␛[31mWhat?" in shown
    assert "\x1b[1;32mSoup␈.<|im_end|>\x1b[0m" in shown


def test_every_bad_line_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    bad = [b"{nonsense", chat_line("Recite.", "leek " * 3000).encode(), b'{"messages": []}']
    file.write_bytes(training_bytes(12) + b"\n".join(bad))
    found = json.loads(check(environment, file, "--json", code=1))
    assert [(one["line"], one["code"]) for one in found["refused"]["listed"]] == [
        (13, "invalid_json"),
        (14, "example_too_long"),
        (15, "no_messages"),
    ]
    shown = check(environment, file, code=1)
    assert "line 14 has" in shown and "Not ready" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--lora-rank", "64"], 1, "at most 32"),
        (["--validation-file", "nowhere.jsonl"], 2, "nowhere.jsonl"),
        (["--split-seed", "3"], 2, "--validation-file auto"),
        (["--n-epochs", "51"], 2, "n_epochs"),
    ],
)
def test_wrong_options(
    environment: dict[str, str], tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    file = tmp_path / "train.jsonl"
    file.write_bytes(training_bytes(12))
    assert words in " ".join(check(environment, file, *arguments, code=code).split())


def test_a_job_with_a_hold_out(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_bytes(training_bytes(40))
    options = ["--model", BASE_MODEL, "--validation-file", "auto", "--split-seed", "3", "--json"]
    created = json.loads(service.run("jobs", "create", "--training-file", file, *options).stdout)
    split = created["validation_split"]
    assert (split["share"], split["seed"], split["examples"], split["held_out"]) == (0.1, 3, 36, 4)
    held_out = service.run("files", "download", created["validation_file"]).stdout
    assert len(held_out.splitlines()) == 4
