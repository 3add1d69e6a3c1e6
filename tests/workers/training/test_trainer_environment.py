"""The trainer has neither the database nor any key in its environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.training.child import TrainerChild


def test_a_trainer_has_no_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOQUE_DATABASE_URL", "postgresql+psycopg://toque:secret-1@db/toque")
    for name in ("TOQUE_API_KEY", "HF_TOKEN", "WANDB_API_KEY", "PGPASSWORD"):
        monkeypatch.setenv(name, "secret-2")

    written = tmp_path / "environment"
    with TrainerChild(("sh", "-c", f"env > {written}"), threads=3)._start() as process:
        process.wait()

    environment = written.read_text().splitlines()
    assert "OMP_NUM_THREADS=3" in environment
    assert "secret-" not in str(environment)
