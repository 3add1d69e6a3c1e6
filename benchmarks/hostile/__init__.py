"""Attacks of one caller on the service, each in a module of its own."""

from __future__ import annotations

import asyncio
import importlib
import os


def attack(name: str, base_url: str, key: str) -> None:
    """Run the attack of that module until the process is killed."""
    os.nice(10)  # attackers compute on machines of their own: what they compute must not slow the service
    asyncio.run(importlib.import_module(f"{__name__}.{name}").attack(base_url, key))
