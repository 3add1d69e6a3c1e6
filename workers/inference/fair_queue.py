"""A queue in which the requests of projects wait, and the project that computes the fewest goes first.

The gateway names the project of a request in its `cache_salt`. However many requests a project has waiting,
another one's next request waits behind none of them. Of one project, requests keep vLLM's order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from heapq import heappop, heappush
from itertools import chain

from typing_extensions import override
from vllm.v1.core.sched.request_queue import PriorityRequestQueue
from vllm.v1.request import Request

from workers.inference.ordered_queue import OrderedQueue

_FIRST_PRIORITY = -(2**20)
"""The priority of a project's first request that is computed; each further one has the next."""


class FairQueue(OrderedQueue):
    """The waiting requests of all projects.

    `computed` counts each project's requests that are being computed. Whoever computes them sets it before
    each step; what is taken from the queue during the step is counted here. Of `held` projects no request is
    taken meanwhile.
    """

    def __init__(self) -> None:
        self.computed: Counter[str] = Counter()
        self.held: Collection[str] = ()
        self._by_project: defaultdict[str, PriorityRequestQueue] = defaultdict(PriorityRequestQueue)

    @override
    def add_request(self, request: Request) -> None:
        request.priority = 0  # that of a request which the engine has returned to the queue is another
        self._by_project[project_of(request)].add_request(request)

    @override
    def peek_request(self) -> Request:
        return self._by_project[self._next_project()].peek_request()

    @override
    def pop_request(self) -> Request:
        """Return the next request.

        If the cache becomes full, vLLM gives up the request with the highest priority, and so one of the
        project that computes the most.
        """
        project = self._next_project()
        request = self._by_project[project].pop_request()
        self._drop_if_empty(project)
        request.priority = _FIRST_PRIORITY + self.computed[project]
        self.computed[project] += 1
        return request

    @override
    def remove_request(self, request: Request) -> None:
        project = project_of(request)
        self._by_project[project].remove_request(request)
        self._drop_if_empty(project)

    @override
    def remove_requests(self, requests: Iterable[Request]) -> None:
        removed = set(requests)
        for project in {project_of(request) for request in removed} & self._by_project.keys():
            self._by_project[project].remove_requests(removed)
            self._drop_if_empty(project)

    @override
    def __bool__(self) -> bool:
        """Whether a request may be taken."""
        return any(project not in self.held for project in self._by_project)

    @override
    def __len__(self) -> int:
        return sum(map(len, self._by_project.values()))

    @override
    def __iter__(self) -> Iterator[Request]:
        """Iterate in the order in which the requests would be taken."""
        computed, rest = self.computed.copy(), {name: iter(each) for name, each in self._by_project.items()}
        heads: list[tuple[int, Request, str]] = []
        for project, requests in rest.items():
            heappush(heads, (computed[project], next(requests), project))
        while heads:
            count, request, project = heappop(heads)
            yield request
            if (following := next(rest[project], None)) is not None:
                heappush(heads, (count + 1, following, project))

    def of_others(self, projects: Collection[str]) -> Iterator[Request]:
        """Iterate over the requests of all projects but these, in no order, and without a look at theirs."""
        return chain.from_iterable(each for name, each in self._by_project.items() if name not in projects)

    def _next_project(self) -> str:
        """Return the project that computes the fewest requests; of equal ones, whose request came first.

        Raises:
            IndexError: no request may be taken.
        """
        waiting = self._by_project
        names = [name for name in waiting if name not in self.held]
        if not names:
            raise IndexError("no request may be taken")
        return min(names, key=lambda name: (self.computed[name], waiting[name].peek_request()))

    def _drop_if_empty(self, project: str) -> None:
        if not self._by_project[project]:
            del self._by_project[project]


def project_of(request: Request) -> str:
    """Return the project that a request belongs to."""
    return request.cache_salt or ""
