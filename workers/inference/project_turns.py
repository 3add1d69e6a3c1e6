"""Whose turn it is when one project computes far more requests than another.

The other's first token then waits neither for the greedy project's requests nor for the time that they take
in a step: meanwhile they get no tokens. So that they do not starve, they get a step once in a while.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import chain

from vllm.v1.request import Request

from workers.inference.fair_queue import FairQueue, project_of

_ALERT_SECONDS = 5.0
"""How long after a first token that has waited steps are short."""
_GREEDY_FACTOR, _GREEDY_EXTRA = 2, 8
"""A project is greedy that computes more than so many times another's requests, and so many more."""
_HELD_SECONDS = 0.5
"""How long greedy projects go without a step while others wait for first tokens, unless one takes longer."""


class ProjectTurns:
    """The turns of the projects whose requests are in a queue, or are being computed.

    Args:
        queue: the waiting requests.
        max_adapters: how many adapters a step can have; None if there are none.
    """

    def __init__(self, queue: FairQueue, max_adapters: int | None) -> None:
        self._queue = queue
        self._max_adapters = max_adapters
        self._waited_at = self._computed_at = -_ALERT_SECONDS
        self._was_held = False

    def next(self, computed: Collection[Request], waiting: Request | None, now: float) -> Collection[str]:
        """Return the projects that get no tokens in the next step.

        Args:
            computed: the requests that are being computed.
            waiting: the first one that waits for nothing but its turn.
            now: the time in seconds.
        """
        self._queue.held = ()
        without_token = [project_of(each) for each in computed if each.is_prefill_chunk]
        if waiting is not None:
            without_token.append(project_of(waiting))
        greedy = self._greedier_than(without_token)
        if greedy:
            self._waited_at = now
            is_turn = self._was_held and now - self._computed_at >= _HELD_SECONDS
            if not is_turn and self._fit_adapters(computed, greedy):
                self._queue.held, self._was_held = greedy, True
                return greedy
        self._computed_at, self._was_held = now, False
        return ()

    def is_alert(self, now: float) -> bool:
        """Whether a project that is not greedy may soon have another request, and is not to wait long."""
        return now - self._waited_at < _ALERT_SECONDS

    def _greedier_than(self, projects: Collection[str]) -> Collection[str]:
        """Return the projects that compute far more than the one of these that computes the fewest."""
        if not projects:
            return ()
        fewest = min(self._queue.computed[project] for project in projects)
        most = _GREEDY_FACTOR * (fewest + 1) + _GREEDY_EXTRA
        return {project for project, count in self._queue.computed.items() if count > most}

    def _fit_adapters(self, computed: Iterable[Request], greedy: Collection[str]) -> bool:
        """Whether all that is computed after the next step fits into one step again."""
        if self._max_adapters is None:
            return True
        entering = self._queue.of_others(greedy)  # the others may have thousands, and this is for each step
        adapters = {each.lora_request.lora_int_id for each in chain(computed, entering) if each.lora_request}
        return len(adapters) <= self._max_adapters
