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
    some = range(_LEAST, max(first_given, 2 * _LEAST))  # a machine may be set up to give nearly all
    for port in random.SystemRandom().sample(some, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("a hundred ports are taken")
