"""Which addresses webhooks may be sent to: public ones, and the private ones that the operator allows.

An address is checked when a socket is made to connect to it. A name may point elsewhere a moment after it was
looked up, so nothing that was checked earlier counts.
https://cheatsheetseries.owasp.org/cheatsheets/Server_Side_Request_Forgery_Prevention_Cheat_Sheet.html
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from pydantic import IPvAnyNetwork
from yarl import URL

from app.core.errors import InvalidRequestError

_GLOBAL_UNICAST = IPv6Network("2000::/3")
"""All IPv6 addresses that are assigned to hosts on the Internet; IPv4-mapped and NAT64 ones are not in it."""
_RESERVED: tuple[IPv4Network | IPv6Network, ...] = tuple(
    ip_network(block)
    for block in (
        "192.0.0.0/24",  # IETF protocol assignments
        "192.88.99.0/24",  # 6to4 relays
        "2001::/23",  # IETF protocol assignments, with Teredo, which carries IPv4 addresses
        "2002::/16",  # 6to4, which carries IPv4 addresses, too
        "3fff::/20",  # documentation
    )
)
"""What `ipaddress` takes for global in some versions of Python."""


class AddressNotAllowedError(OSError):
    """The address is private or reserved, and the operator has not allowed it."""

    def __init__(self, address: str) -> None:
        super().__init__(f"{address} is not a public address, and webhooks are sent to no other")


def require_allowed(address: str, private_networks: Sequence[IPvAnyNetwork]) -> None:
    """Check a numeric address.

    Raises:
        AddressNotAllowedError: it is not public, and in none of these networks.
    """
    parsed = ip_address(address)
    if not (_is_public(parsed) or any(parsed in network for network in private_networks)):
        raise AddressNotAllowedError(address)


def check_url(url: str, private_networks: Sequence[IPvAnyNetwork]) -> None:
    """Check what can be told from an endpoint's URL alone; where its name leads is not looked up.

    Plain HTTP is for private networks, where the operator allows some.

    Raises:
        InvalidRequestError: nothing can be delivered there.
    """
    try:
        parsed = URL(url)
        host = parsed.host
    except ValueError:
        raise _invalid_url("is not a URL") from None
    if parsed.scheme != "https" and not (parsed.scheme == "http" and private_networks):
        raise _invalid_url("must begin with https://")
    if not host or parsed.user is not None or parsed.password is not None:
        raise _invalid_url("needs a host, and takes no user name or password")
    try:
        require_allowed(host, private_networks)
    except AddressNotAllowedError as error:
        raise _invalid_url(f"cannot be delivered to: {error}") from None
    except ValueError:
        return  # a name


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    return (
        address.is_global
        and not address.is_multicast
        and not any(address in network for network in _RESERVED if network.version == address.version)
    )


def _invalid_url(problem: str) -> InvalidRequestError:
    return InvalidRequestError(f"The URL {problem}.", code="invalid_url", param="url")
