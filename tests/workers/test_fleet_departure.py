"""What runs on a node that leaves its cluster; `tests/cluster` lets real ones leave."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace
from typing import Any

import psutil

from workers.fleet.departure import _processes_of_fleet  # pyright: ignore[reportPrivateUsage]


def test_an_actor_may_end_while_its_processes_are_looked_for() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        actor = psutil.Process(process.pid)
        process.kill()
    raylet: Any = SimpleNamespace(children=lambda: [actor])
    assert _processes_of_fleet(raylet, "engine") == []
