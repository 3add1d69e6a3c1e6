"""The trainer has neither the database nor any key in its environment."""

from __future__ import annotations

import psutil
import pytest

from workers.training.child import TrainerChild


def test_a_trainer_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOQUE_DATABASE_URL", "postgresql+psycopg://toque:secret-1@db/toque")
    for name in ("TOQUE_API_KEY", "HF_TOKEN", "WANDB_API_KEY", "PGPASSWORD"):
        monkeypatch.setenv(name, "secret-2")

    with TrainerChild(("sleep", "60"), threads=3)._start() as process:
        environment = psutil.Process(process.pid).environ()
        process.kill()

    assert environment["OMP_NUM_THREADS"] == "3"
    assert "secret-" not in str(environment)
