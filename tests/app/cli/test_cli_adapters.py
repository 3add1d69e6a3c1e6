"""`toque adapters`, against a real API."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.models.adapters.models import Adapter
from app.models.adapters.validation import module_shapes
from tests.support.command import Service
from tests.support.peft_folder import tensors, write_adapter
from tests.support.service import BASE_MODEL

FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "mine")


def imported(service: Service, folder: Path, *options: str) -> str:
    done = service.run("adapters", "import", folder, "--base-model", BASE_MODEL, "--json", *options)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["id"]


@pytest.mark.parametrize("command", ["import", "export", "check", "merge"])
def test_every_command_has_an_example(service: Service, command: str) -> None:
    assert f"Example: toque adapters {command}" in service.run("adapters", command, "--help").output


def test_an_adapter_there_and_back(service: Service, adapter: Path, tmp_path: Path) -> None:
    name = imported(service, adapter, "--suffix", "house")
    assert name.startswith(f"ft:{BASE_MODEL}:default:house:")
    assert name in service.run("models", "list").stdout

    target = tmp_path / "new" / "taken"
    taken = service.run("adapters", "export", name, "--into", target)
    assert taken.exit_code == 0, taken.output
    assert sorted(path.name for path in target.iterdir()) == list(FILES)
    assert (target / FILES[1]).read_bytes() == (adapter / FILES[1]).read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["taken"]
    again = service.run("adapters", "export", name, "--into", target)
    assert (again.exit_code, "exists already" in again.stderr) == (2, True)
    assert imported(service, target) != name


def test_the_folder_has_the_models_name(
    service: Service, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = imported(service, adapter)
    monkeypatch.chdir(tmp_path)
    assert service.run("adapters", "export", name).exit_code == 0
    assert (tmp_path / name.replace(":", "-") / FILES[0]).is_file()


def test_what_is_refused_is_one_line(service: Service, adapter: Path, tmp_path: Path) -> None:
    (adapter / FILES[1]).write_bytes(b"\x80\x04 pickle")
    bad = service.run("adapters", "import", adapter, "--base-model", BASE_MODEL)
    assert bad.exit_code == 1
    assert "is a pickle" in bad.stderr
    assert "code invalid_safetensors, param adapter_model.safetensors" in bad.stderr
    (adapter / FILES[1]).unlink()
    lacking = service.run("adapters", "import", adapter, "--base-model", BASE_MODEL)
    assert lacking.exit_code == 2
    assert f"has no {FILES[1]}" in lacking.stderr
    for command in (["export", "ft:none"], ["merge", "ft:none"]):
        gone = service.run("adapters", *command, "--into", tmp_path / "new")
        assert gone.exit_code == 1
        assert "code model_not_found" in gone.stderr
    assert not (tmp_path / "new").exists()


def test_checked_again(service: Service, adapter: Path) -> None:
    name = imported(service, adapter)
    fine = service.run("adapters", "check", name)
    assert (fine.exit_code, fine.stdout.split()) == (0, ["model", name, "state", "served"])
    with service.database.writer() as session:
        row = session.get_one(Adapter, name)
        row.storage_key, key = "adapters/../../elsewhere/a", row.storage_key
    bad = service.run("adapters", "check", name)
    assert bad.exit_code == 1
    assert [word.strip() for word in bad.stdout.split(maxsplit=5)[3:]] == [
        "quarantined",
        "reason",
        "its folder is outside the storage",
    ]
    with service.database.writer() as session:
        session.get_one(Adapter, name).storage_key = key
    again = service.run("adapters", "check", name, "--json")
    assert (again.exit_code, json.loads(again.stdout)["quarantine_reason"]) == (0, None)
    assert "code model_not_found" in service.run("adapters", "check", "ft:none").stderr


def test_a_model_that_stands_alone(service: Service, base_models_dir: Path, tmp_path: Path) -> None:
    shapes = module_shapes(base_models_dir / BASE_MODEL)
    some = {name: shape for name, shape in shapes.items() if ".layers.3." in name}
    name = imported(service, write_adapter(tmp_path / "mine", tensors(some)))
    here = Service(service.environment | {"TOQUE_MODELS_DIR": str(base_models_dir)}, service.database)
    assert here.run("adapters", "merge", name, "--into", tmp_path / "merged").exit_code == 0
    base = {path.name for path in (base_models_dir / BASE_MODEL).iterdir()}
    assert {path.name for path in (tmp_path / "merged").iterdir()} == base
    assert module_shapes(tmp_path / "merged") == shapes
    again = here.run("adapters", "merge", tmp_path / "mine", "--into", tmp_path / "merged")
    assert again.exit_code == 1
