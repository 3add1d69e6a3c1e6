"""All phases of Schemathesis against the service: `python -m tests.specification.fuzz [OPTION…]`.

It runs twice, for an administrator and for a stranger, against an engine that is a stand-in. Options are
passed on to `schemathesis run`; what it checks is in `schemathesis.toml`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from pydantic import SecretStr

from app.auth.service import ensure_first_key
from app.core.database import Database
from app.core.migrations import upgrade
from app.core.settings import Settings
from tests.support.base_models import prepared_base_models
from tests.support.engine_stand_in import EngineStandIn, register_engine, run_engine
from tests.support.service import API_KEY, close_loop, run_service

SPECIFICATION = Path(__file__).parents[2] / "openapi" / "openapi.json"
ADMINISTRATOR = [f"--header=Authorization: Bearer {API_KEY}"]


def main() -> None:
    """Exit with 1 if anything was found."""
    with tempfile.TemporaryDirectory(prefix="toque-") as folder:
        url = f"sqlite:///{folder}/toque.db"
        upgrade(url)
        settings = Settings(
            data_dir=Path(folder),
            database_url=url,
            models_dir=prepared_base_models(),
            api_key=SecretStr(API_KEY),
            refusals_per_second=0,
        )
        database = Database(url)
        with database.writer() as session:
            ensure_first_key(session, API_KEY)
        with run_engine(EngineStandIn(), f"{folder}/engine.sock"):
            register_engine(database, f"unix:{folder}/engine.sock")
            with run_service(settings) as service:
                found = [_run(service.url, Path(folder), options) for options in (ADMINISTRATOR, [])]
        database.dispose()
    close_loop()
    raise SystemExit(any(found))


def _run(url: str, folder: Path, options: list[str]) -> int:
    """Run Schemathesis in the folder, and return its status, which is 0 if it found nothing."""
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        f"--config-file={Path(__file__).with_name('schemathesis.toml')}",
        "run",
        str(SPECIFICATION),
        f"--url={url}",
        "--phases=examples,coverage,fuzzing,stateful",
        *options,
        *sys.argv[1:],
    ]
    return subprocess.run(command, cwd=folder, check=False).returncode


if __name__ == "__main__":
    main()
