"""`toque fleet` with stand-ins for trainers and vLLM: everything between them and Ray is real."""

from __future__ import annotations

import sys

from app.cli.fleet import supervise
from workers.fleet.__main__ import main

COMMAND = [sys.executable, "-m", "tests.cluster.stand_in_fleet"]
WORKER = [sys.executable, "-m", "tests.cluster.stand_in_worker", "--until-idle"]
ENGINE = [sys.executable, "-m", "tests.cluster.stand_in_engine"]

if __name__ == "__main__":
    address, *role = sys.argv[1:]
    if role == ["run"]:
        raise SystemExit(main([address], WORKER, ENGINE))
    raise SystemExit(supervise([*COMMAND, address, "run"]))
