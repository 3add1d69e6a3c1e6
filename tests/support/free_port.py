"""A port that nobody listens on, and that nobody is given by chance before a server of the test listens."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from pathlib import Path

_LEAST = 10_000
_GIVEN = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """One below those that the kernel gives to connections and to who asks for any (`ip(7)`)."""
    first_given = int(_GIVEN.read_text().split()[0])
    for port in random.SystemRandom().sample(range(_LEAST, first_given), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("a hundred ports are taken")
