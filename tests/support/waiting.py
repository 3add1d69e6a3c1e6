"""Waiting for what other threads and processes do."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest


def listens(path: str) -> bool:
    """Whether a Unix socket can be connected to; it exists a little earlier."""
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(path) == 0


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 300) -> Any:
    """The condition's value once it is true; fails when it stays false.

    The longer it takes, the less often it looks: many conditions ask the service, which costs processor time.
    """
    started = time.monotonic()
    while (waited := time.monotonic() - started) < seconds:
        if value := condition():
            return value
        time.sleep(min(0.1, max(0.02, waited / 20)))
    pytest.fail(f"waited {seconds} s in vain: {what}")
