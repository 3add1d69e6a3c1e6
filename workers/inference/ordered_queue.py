"""A queue that has an order of its own, so that no request can be put in front of it."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable

from typing_extensions import override
from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request


class OrderedQueue(RequestQueue, ABC):
    """A queue to which a request that the engine returns is added like any other."""

    @override
    def prepend_request(self, request: Request) -> None:
        self.add_request(request)

    @override
    def prepend_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.add_request(request)
