"""Runs the fleet on a Ray cluster: `python -m workers.fleet [--address HOST:PORT]`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence

from app.core.logs import set_up_logging
from app.core.settings import Settings
from workers.fleet.cluster import JOIN_SECONDS, Cluster, UnusableClusterError
from workers.fleet.fleet import Fleet

WORKER = (sys.executable, "-P", "-m", "workers.training.worker", "--until-idle")
ENGINE = (sys.executable, "-P", "-m", "workers.inference.engine")

log = logging.getLogger("toque.fleet")


def main(arguments: Sequence[str], worker: Sequence[str] = WORKER, engine: Sequence[str] = ENGINE) -> int:
    """Runs the fleet until SIGTERM or SIGINT.

    Returns:
        The exit code: 0; 1 if the cluster cannot be reached; `os.EX_CONFIG` if somebody has to act first.
    """
    parser = argparse.ArgumentParser(prog="python -m workers.fleet")
    parser.add_argument("--address")
    options = parser.parse_args(arguments)
    settings = Settings()
    set_up_logging("fleet", settings.log_format)
    try:
        cluster = Cluster(options.address, settings.fleet_resource)
        if problems := cluster.unusable_nodes(JOIN_SECONDS):
            raise UnusableClusterError("; ".join(problems.values()))
        fleet = Fleet(settings, cluster, worker, engine)
    except UnusableClusterError as error:
        log.error("%s", error)
        return os.EX_CONFIG
    except ConnectionError as error:
        log.error("%s", error)
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, fleet.stop)
    fleet.run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
