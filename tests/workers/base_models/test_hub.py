"""Pulling from a hub that speaks Hugging Face's protocol: broken, damaged, missing and gated downloads."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.base_models.files import unready
from app.core.settings import BaseModelEntry
from tests.support.hub import Hub, run_hub
from tests.support.prepared_model import write_model
from tests.support.waiting import wait_until
from workers.base_models.errors import BaseModelError
from workers.base_models.preparation import pull

ID = "kitchen/Some-Model"
WEIGHTS = "model.safetensors"
CONTENT = hashlib.shake_256(b"weights").digest(300_000)
ENTRY = BaseModelEntry(name="some-model", source=ID)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    repository = tmp_path / "repository"
    write_model(repository)
    (repository / WEIGHTS).write_bytes(CONTENT)
    (repository / "pytorch_model.bin").write_bytes(b"a pickle")
    (repository / "modeling.py").write_text("raise SystemExit")
    (repository / "consolidated.safetensors").write_bytes(b"the same weights again")
    with run_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _seconds: None)
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50_000)  # of which none is lost
        hub.add(ID, repository)
        yield hub


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "some-model"


def refused(target: Path, says: str) -> str:
    with pytest.raises(BaseModelError, match=says) as refusal:
        pull(ENTRY, target, lambda _line: None)
    assert not target.exists()
    return str(refusal.value)


def weights_asked_for(hub: Hub) -> list[int]:
    return [start for name, start in hub.asked if name == WEIGHTS]


def test_weights_and_texts_without_pickles_and_code(hub: Hub, target: Path) -> None:
    said: list[str] = []
    pull(ENTRY, target, said.append)
    assert unready(target) is None
    assert (target / WEIGHTS).read_bytes() == CONTENT
    names = {"chat_template.jinja", "config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS}
    assert {name for name, _ in hub.asked} == names
    assert {path.name for path in target.iterdir()} == names | {".source"}
    assert any(f"{WEIGHTS} (0.3 MB; 5 of 5)" in line for line in said)
    assert [path.name for path in target.parent.iterdir()] == ["some-model"]


def test_a_connection_that_breaks_is_resumed(hub: Hub, target: Path) -> None:
    hub.breaks_after[WEIGHTS] = [100_000, 150_000]
    pull(ENTRY, target, lambda _line: None)
    assert weights_asked_for(hub) == [0, 100_000, 250_000]
    assert (target / WEIGHTS).read_bytes() == CONTENT


def test_another_process_goes_on_where_one_was_killed(hub: Hub, target: Path) -> None:
    hub.breaks_after[WEIGHTS] = [100_000] + [0] * 5
    refused(target, r"could not be downloaded.*\n.*run the command again")
    hub.asked.clear()
    pull(ENTRY, target, lambda _line: None)
    assert hub.asked == [(WEIGHTS, 100_000)], "and the small files were there already"
    assert (target / WEIGHTS).read_bytes() == CONTENT


def test_what_is_there_of_another_commit_is_not_mixed(hub: Hub, target: Path) -> None:
    hub.breaks_after[WEIGHTS] = [100_000] + [0] * 5
    refused(target, "could not be downloaded")
    hub.asked.clear()
    hub.commit = "beef" * 10
    hub.repositories[ID][WEIGHTS] = CONTENT[::-1]
    pull(ENTRY, target, lambda _line: None)
    assert weights_asked_for(hub) == [0]
    assert (target / WEIGHTS).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_damaged_file_is_downloaded_again(hub: Hub, target: Path, name: str) -> None:
    hub.corrupt[name] = 1
    pull(ENTRY, target, lambda _line: None)
    assert [start for asked, start in hub.asked if asked == name] == [0, 0]
    assert (target / WEIGHTS).read_bytes() == CONTENT


def test_a_file_that_is_always_damaged_is_refused(hub: Hub, target: Path) -> None:
    hub.corrupt[WEIGHTS] = 9
    refused(target, f"{WEIGHTS} arrived damaged 2 times")
    hub.corrupt.clear()
    hub.asked.clear()
    pull(ENTRY, target, lambda _line: None)
    assert hub.asked == [(WEIGHTS, 0)]


def test_a_model_that_the_hub_does_not_have(hub: Hub, target: Path) -> None:
    del hub.repositories[ID]
    refused(target, f"{hub.url} has no model {ID}.*HF_TOKEN")


def test_a_gated_model(hub: Hub, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated.add(ID)
    refused(target, f"gated: accept its terms at {hub.url}/{ID}")
    monkeypatch.setenv("HF_TOKEN", "hf_accepted")
    pull(ENTRY, target, lambda _line: None)
    assert unready(target) is None


def test_a_hub_that_cannot_be_reached(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    refused(target, r"could not be downloaded from http://127.0.0.1:9.*\n.*HF_ENDPOINT to a mirror")


def test_a_disk_without_room(hub: Hub, target: Path) -> None:
    hub.claimed_size[WEIGHTS] = 10**16
    refused(target, "needs 10,000,000.0 GB.*TOQUE_MODELS_DIR")
    assert hub.asked == []


def test_nothing_large_is_downloaded_without_a_chat_template(hub: Hub, target: Path) -> None:
    del hub.repositories[ID]["chat_template.jinja"]
    refused(target, "no chat template")
    assert weights_asked_for(hub) == []


def test_nothing_large_is_downloaded_that_cannot_be_served(hub: Hub, target: Path) -> None:
    hub.repositories[ID]["config.json"] = json.dumps({"architectures": ["BertModel"]}).encode()
    refused(target, r"its architecture \(BertModel\) cannot be served")
    assert weights_asked_for(hub) == []


def test_a_repository_without_safetensors(hub: Hub, target: Path) -> None:
    del hub.repositories[ID][WEIGHTS]
    refused(target, r"no \*\.safetensors")


def test_a_second_pull_waits_for_the_first(hub: Hub, target: Path) -> None:
    command = [sys.executable, "-m", "workers.base_models", "pull", "some-model"]
    environment = {
        "PATH": "",
        "HF_ENDPOINT": hub.url,
        "TOQUE_MODELS_DIR": str(target.parent),
        "TOQUE_DATA_DIR": str(target.parent),
        "TOQUE_BASE_MODELS": f"[{ENTRY.model_dump_json()}]",
    }
    hub.held.clear()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as first:
        wait_until(lambda: weights_asked_for(hub), "the first downloads")
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as second:
            assert second.stdout is not None
            assert "another process prepares it" in second.stdout.readline()
            hub.held.set()
            assert (first.wait(30), second.wait(30)) == (0, 0)
    assert weights_asked_for(hub) == [0]
    assert unready(target) is None
