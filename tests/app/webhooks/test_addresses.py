"""Nothing is sent to an address that is not public, however the URL comes to it."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_network
from typing import Any

import pytest
from yarl import URL

from app.core.settings import Settings
from app.webhooks.addresses import AddressNotAllowedError, require_allowed
from app.webhooks.client import Answer, WebhookClient
from tests.support.webhook_receiver import Receiver, run_receiver

NOT_PUBLIC = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "3fff::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_addresses_that_are_not_public(address: str) -> None:
    with pytest.raises(AddressNotAllowedError):
        require_allowed(address, [])


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "172.32.0.1", "2606:4700:4700::1111"])
def test_addresses_that_are_public(address: str) -> None:
    require_allowed(address, [])


def test_the_operator_allows_private_networks() -> None:
    allowed = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
    for address in ("10.1.2.3", "fd00::1"):
        require_allowed(address, allowed)
    for address in ("127.0.0.1", "::ffff:10.1.2.3", "192.168.0.1", "::1"):
        with pytest.raises(AddressNotAllowedError):
            require_allowed(address, allowed)


def send(url: str, *networks: str) -> Answer:
    settings = Settings(webhook_private_networks=[ip_network(network) for network in networks])

    async def send() -> Answer:
        client = WebhookClient(settings)
        try:
            return await client.post(url, {}, b"{}")
        finally:
            await client.close()

    return asyncio.run(send())


@pytest.fixture
def receiver() -> Any:
    with run_receiver() as running:
        yield running


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "localhost.", "2130706433", "0x7f000001", "017700000001", "127.1", "[::1]"],
)
def test_other_spellings_of_this_machine(receiver: Receiver, host: str) -> None:
    port = URL(receiver.url).port
    answer = send(f"http://{host}:{port}")
    assert (answer.status_code, receiver.received) == (None, [])
    assert answer.error is not None


def test_a_name_that_leads_elsewhere_when_it_is_looked_up_again(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = iter(["127.0.0.2", "127.0.0.1"])
    looked_up: list[str] = []

    def resolve(host: str, port: int, *_: object) -> list[Any]:
        looked_up.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(addresses), port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    port = URL(receiver.url).port
    answer = send(f"http://rebinding.example:{port}", "127.0.0.2/32")
    assert answer.status_code is None, "nobody listens there"
    assert looked_up == ["rebinding.example"], "what was checked is what is connected to"
    answer = send(f"http://rebinding.example:{port}", "127.0.0.2/32")
    assert (answer.status_code, receiver.received) == (None, [])
    assert "127.0.0.1 is not a public address" in (answer.error or "")


def test_of_several_addresses_only_those_are_tried_that_are_allowed(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(_host: str, port: int, *_: object) -> list[Any]:
        found = ["10.255.255.1", "127.0.0.1"]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    port = URL(receiver.url).port
    answer = send(f"http://several.example:{port}", "127.0.0.1/32")
    assert answer.status_code == 200
    assert receiver.received[0].headers["host"] == f"several.example:{port}", "the name is kept"


def test_a_name_that_nobody_has() -> None:
    assert send("https://nobody.invalid/").error == "The name of its host cannot be resolved."


def _read_request(connection: socket.socket) -> None:
    request = b""
    while not request.endswith(b"\r\n\r\n{}"):
        block = connection.recv(65536)
        assert block, request
        request += block


def test_an_answer_that_is_not_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"

        async def answer() -> Answer:
            client = WebhookClient(Settings(webhook_private_networks=[ip_network("127.0.0.0/8")]))
            sending = asyncio.create_task(client.post(url, {}, b"{}"))
            connection, _ = await asyncio.to_thread(server.accept)
            await asyncio.to_thread(_read_request, connection)  # or closing would reset the connection
            connection.sendall(b"\x15\x03\x01 nonsense\r\n\r\n" * 10)
            connection.close()
            try:
                return await sending
            finally:
                await client.close()

        assert "valid HTTP response" in (asyncio.run(answer()).error or "")
