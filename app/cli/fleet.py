"""`toque fleet` keeps workers and engines on a Ray cluster; `toque drain` takes a machine out of it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from app.cli.duration import parse_duration
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


def drain(
    within: Annotated[str, typer.Option(help="How long it may take.")] = "120s",
    node_id: Annotated[
        str | None,
        typer.Option(show_default=False, help="Ray's id of the node, if several run on this machine."),
    ] = None,
) -> NoReturn:
    """Move what a fleet runs on this machine to others; then Ray can be stopped here.

    Workers save checkpoints and return their jobs to the queue, and engines finish their answers.

    Example: toque drain && ray stop
    """
    options = [f"--seconds={parse_duration(within, '--within')}"]
    options += [f"--node-id={node_id}"] if node_id else []
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    command = module_command("workers.fleet.departure", *options)
    os.execve(command[0], command, child_environment(RAY))  # noqa: S606 - no shell is the point


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
