"""Waiting for what other threads and processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """The condition's value once it is true; fails when it stays false.

    The longer it takes, the less often it looks: many conditions ask the service, which costs processor time.
    """
    started = time.monotonic()
    while (waited := time.monotonic() - started) < seconds:
        if value := condition():
            return value
        time.sleep(min(0.1, max(0.02, waited / 20)))
    pytest.fail(f"waited {seconds} s in vain: {what}")
