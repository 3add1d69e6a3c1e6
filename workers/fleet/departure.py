"""This machine's departure from its Ray cluster: `python -m workers.fleet.departure --seconds 120`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import psutil

from workers.fleet.bound_process import ROLE

T = TypeVar("T")


class DepartureError(Exception):
    """This machine cannot leave; the message says why."""


def leave_cluster(seconds: float, node_id: str | None = None) -> list[str]:
    """Empty this machine's node of the cluster, and return once nothing of the fleet runs on it.

    Ray places nothing new on a node that drains. Its workers save checkpoints and return their jobs to the
    queue. Ray Serve starts other engines for those of the node, and then lets these finish their answers.

    Args:
        seconds: how long this may take.
        node_id: which node, where several run on this machine.

    Returns:
        The commands of the processes that still ran when the time was over.

    Raises:
        DepartureError: there is no such node here, or the cluster refuses.
    """
    deadline = time.monotonic() + seconds
    raylet = _find_raylet(node_id)
    _drain(raylet, seconds)
    processes = _processes_of_fleet(raylet, "worker")
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    processes += _processes_of_fleet(raylet, "engine")
    _, left = psutil.wait_procs(processes, timeout=max(0.0, deadline - time.monotonic()))
    return [" ".join(_command(process)) for process in left]


def _find_raylet(node_id: str | None) -> psutil.Process:
    """Return the process that is the node."""
    raylets = [process for process in psutil.process_iter() if _command(process)[0].endswith("/raylet")]
    found = [process for process in raylets if node_id in (None, _option(process, "--node_id"))]
    if not found:
        raise DepartureError("no such node of a Ray cluster runs on this machine")
    if len(found) > 1:
        ids = ", ".join(_option(process, "--node_id") for process in found)
        raise DepartureError(f"several nodes run on this machine: choose one of {ids}")
    return found[0]


def _drain(raylet: psutil.Process, seconds: float) -> None:
    """Ask the cluster to place nothing on the node any more."""
    asked = subprocess.run(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "drain-node"),
            *("--address", _option(raylet, "--gcs-address"), "--node-id", _option(raylet, "--node_id")),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "toque drain"),
            *("--deadline-remaining-seconds", str(int(seconds))),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode != 0:
        raise DepartureError(
            f"the cluster refuses: {(asked.stderr or asked.stdout).strip().splitlines()[-1]}"
        )


def _processes_of_fleet(raylet: psutil.Process, role: str) -> list[psutil.Process]:
    """Return the workers, or the engines, that the node's actors have started."""
    actors = _unless_ended(raylet.children, [])
    children = [child for actor in actors for child in _unless_ended(actor.children, [])]
    return [child for child in children if _unless_ended(child.environ, {}).get(ROLE) == role]


def _command(process: psutil.Process) -> Sequence[str]:
    return _unless_ended(process.cmdline, []) or [""]


def _unless_ended(ask: Callable[[], T], otherwise: T) -> T:
    """Ask something of a process that may have just ended."""
    try:
        return ask()
    except psutil.Error:
        return otherwise


def _option(process: psutil.Process, name: str) -> str:
    """Return the value of `name=value` in a command."""
    given = (word.removeprefix(f"{name}=") for word in _command(process) if word.startswith(f"{name}="))
    return next(given, "")


def main(arguments: Sequence[str]) -> int:
    """Empty the node.

    Returns:
        The exit code: 0; 1 if something still runs there; `os.EX_UNAVAILABLE` if there is no such node.
    """
    parser = argparse.ArgumentParser(prog="python -m workers.fleet.departure")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--node-id")
    options = parser.parse_args(arguments)
    try:
        left = leave_cluster(options.seconds, options.node_id)
    except DepartureError as error:
        print(f"drain: {error}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    for command in left:
        print(f"drain: still runs: {command}", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
