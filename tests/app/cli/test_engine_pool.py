"""The engines that `toque serve` starts and stops."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from app.cli.engine_pool import EnginePool
from app.cli.supervisor import Program, Supervisor
from app.core.database import Database
from app.core.settings import BaseModelEntry, Settings
from tests.support.service import BASE_MODEL


@pytest.mark.one_database
def test_it_goes_on_after_an_error(settings: Settings, database: Database, tmp_path: Path) -> None:
    models = settings.model_copy(update={"models_dir": tmp_path / "models"})
    folder = models.base_model_dir(models.base_models[0])
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    weights, target = folder / "model.safetensors", tmp_path / "weights"
    weights.symlink_to(target)  # which is not there: its size cannot be read

    async def started() -> str:
        said = asyncio.Event()
        begun: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def program(entry: BaseModelEntry, is_default: bool) -> Program:
            assert is_default
            begun.set_result(entry.name)
            return Program(entry.name, [sys.executable, "-c", "pass"])

        supervisor = Supervisor([], lambda name, line: None, lambda line: None)
        pool = asyncio.create_task(EnginePool(models, supervisor, program, lambda line: said.set()).run())
        try:
            async with asyncio.timeout(20):
                await said.wait()
                target.write_bytes(b"")
                return await begun
        finally:
            pool.cancel()

    assert asyncio.run(started()) == BASE_MODEL
