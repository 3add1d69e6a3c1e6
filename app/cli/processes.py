"""`toque worker` and `toque engine`: the commands that become another process, and how each is started."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from app.cli.permissions import restrict_permissions
from app.cli.settings import read_settings
from app.core.child_environment import engine_environment, worker_environment


def worker(
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="End after TOQUE_WORKER_IDLE_SECONDS without a job.")
    ] = False,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, show_default=False, help="Take only jobs that ask for exactly so many GPUs."),
    ] = None,
) -> None:
    """Run one training worker.

    Example: toque worker --until-idle
    """
    options = ["--until-idle"] if until_idle else []
    options += [f"--gpus={gpus}"] if gpus is not None else []
    become("workers.training.worker", worker_environment(read_settings().tracker), *options)


def engine(
    base: Annotated[
        str | None,
        typer.Option(
            show_default="TOQUE_ENGINE_BASE_MODEL, or the catalogue's first",
            help="Base model to serve, for gateways on this machine.",
        ),
    ] = None,
) -> None:
    """Run one engine, which serves a base model and its adapters.

    Example: toque engine --base qwen3-0.6b
    """
    if base is not None:
        # Two engines cannot listen on one address; this one gets a Unix socket.
        os.environ |= {"TOQUE_ENGINE_BASE_MODEL": base, "TOQUE_ENGINE_LISTEN": "", "TOQUE_ENGINE_URL": ""}
    become("workers.inference.engine", engine_environment())


def become(module: str, environment: dict[str, str], *options: str) -> NoReturn:
    """Replaces this process by a module of ours."""
    restrict_permissions(read_settings())
    command = module_command(module, *options)
    os.execve(command[0], command, environment)  # noqa: S606 - no shell is the point


def toque_command(*arguments: str) -> list[str]:
    """Returns the command line of a `toque` command."""
    return module_command("app.cli.main", *arguments)


def module_command(module: str, *arguments: str) -> list[str]:
    """Returns the command line that runs a module of ours."""
    # -P keeps a folder named `app` in the working directory from being imported instead of ours.
    return [sys.executable, "-P", "-m", module, *arguments]
