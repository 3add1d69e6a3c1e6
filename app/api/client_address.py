"""The address of the client behind proxies that are trusted to name it."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

from pydantic import IPvAnyNetwork
from starlette.datastructures import Headers


def client_address(peer: str, headers: Headers, trusted: Sequence[IPvAnyNetwork]) -> str:
    """Return the nearest address that no trusted proxy has: each adds the one before it to `X-Forwarded-For`.

    What is further from us than that, or is no IP address, may be made up, and is not looked at.
    https://developer.mozilla.org/en-US/docs/Web/HTTP/Reference/Headers/X-Forwarded-For#selecting_an_ip_address
    """
    address = _parse(peer)
    named = [each for line in headers.getlist("x-forwarded-for") for each in line.split(",")]
    for before in map(_parse, reversed(named)):
        if before is None or address is None or not any(address in network for network in trusted):
            break
        address = before
    return peer if address is None else str(address)


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text.strip())
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
