"""`toque fleet`: keeps as many workers and engines on a Ray cluster as the work needs."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from app.cli.output import fail
from app.cli.processes import module_command
from app.cli.settings import read_settings
from app.cli.supervisor import Program, Supervisor
from app.core.child_environment import DATABASE, RAY, TELEMETRY, child_environment, storage_secrets


def fleet(
    address: Annotated[
        str | None,
        typer.Option(
            show_default="RAY_ADDRESS, or the cluster of this machine",
            help="HOST:PORT of the cluster's head. This machine has to be one of its nodes.",
        ),
    ] = None,
) -> None:
    """Run workers and engines on a Ray cluster, as many as the work needs.

    Example: toque fleet --address ray-head:6379
    """
    if not read_settings().database_url.startswith("postgresql"):
        fail("a fleet needs a database that its machines share: set TOQUE_DATABASE_URL (PostgreSQL)", 2)
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    options = [f"--address={address}"] if address else []
    raise typer.Exit(supervise(module_command("workers.fleet", *options)))


def supervise(command: Sequence[str]) -> int:
    """Runs a fleet process, and another one after the loss of its cluster has ended it.

    Returns:
        The exit code of the command.
    """
    environment = child_environment((*DATABASE, *storage_secrets(), *RAY, *TELEMETRY), has_settings=True)
    program = Program("fleet", command, environment, hopeless=os.EX_CONFIG)
    return asyncio.run(Supervisor([program], lambda _, line: _say(line), _say).run())


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
