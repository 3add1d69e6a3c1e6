"""Requests that are sent at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Callable

import httpx2

from tests.support.service import Service


def race(service: Service, *requests: Callable[[httpx2.Client], httpx2.Response]) -> list[httpx2.Response]:
    """The answers to requests that are sent at once, each on a connection of its own."""
    barrier = threading.Barrier(len(requests))
    answers: list[httpx2.Response | None] = [None] * len(requests)

    def run(place: int) -> None:
        with service.http() as http:
            http.get("/health/live")  # connects
            barrier.wait()
            answers[place] = requests[place](http)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answer for answer in answers if answer is not None]
