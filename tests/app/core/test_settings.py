"""Settings come from the environment, and docs/settings.md describes them all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.core.settings import Settings
from docs.generate import SETTINGS_PAGE, settings_page


def test_the_settings_page_is_current_and_describes_every_setting() -> None:
    text = SETTINGS_PAGE.read_text("utf-8")
    assert text == settings_page(), "run `make generated`"
    missing = [name for name in Settings.model_fields if f"`TOQUE_{name.upper()}`" not in text]
    assert missing == []


def test_the_environment_and_empty_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOQUE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TOQUE_PORT", "")
    monkeypatch.setenv("TOQUE_BASE_MODELS", '[{"name": "b", "source": "org/b", "also_known_as": ["c"]}]')
    settings = Settings()
    assert (settings.port, settings.sqlalchemy_url) == (8000, f"sqlite:///{tmp_path / 'toque.db'}")
    [entry] = settings.base_models
    assert (entry.name, settings.base_model_dir(entry)) == ("b", tmp_path / "models" / "b")


def test_the_service_imports_no_machine_learning() -> None:
    heavy = "{'torch', 'transformers', 'peft', 'vllm', 'numpy'}"
    check = f"import sys, app.api.main; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
