"""vLLM's scheduler, which answers requests that somebody waits for before those of batches.

Requests of batches have the priority 1, all others 0 (`app.completions.gateway`). vLLM alone would sort the
queue by priority, but compute both in one step, which takes the longer the more it computes. Here they never
share a step:

- While an interactive request is computed or waits, batches get no tokens. Their requests keep their places
  in the KV cache, unless an interactive request needs them.
- For some seconds after that, the steps of batches are short, since the next interactive request has to wait
  for the step that is being computed.
- So that no batch starves, it gets a short step of its own once in a while, also between the tokens of
  interactive requests.

Prompts that are scored are interactive, but come many at a time: others that arrive soon after them go ahead.

Without interactive requests, steps are vLLM's own.
"""

from __future__ import annotations

import time
from typing import Any, cast

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import PriorityRequestQueue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

_ALERT_SECONDS = 5.0
"""How long after an interactive request the steps of batches are short."""
_SHORT_STEP_TOKENS = 16
"""Tokens in a short step: one each of as many sequences, or a part of a prompt."""
_SCORED_LATER_SECONDS = 30.0
"""How much later than it did a prompt that is scored counts as having arrived."""
_TURN_SECONDS = 0.5
"""How long batches go without a step while interactive requests are computed."""
_TURN_BEFORE_FIRST_TOKEN_SECONDS = 2.0
"""The same while an interactive request waits for its first token."""


class InteractiveFirstQueue(PriorityRequestQueue):
    """The queue of waiting requests, by priority and time, which can be closed to those of batches or all."""

    def __init__(self) -> None:
        super().__init__()
        self.admits_interactive = self.admits_batches = True

    def __bool__(self) -> bool:
        """Whether the first request may be admitted."""
        if not self._heap:
            return False
        return self.admits_batches if _is_of_batch(self._heap[0]) else self.admits_interactive

    @property
    def has_batches(self) -> bool:
        """Whether a request of a batch waits."""
        return any(map(_is_of_batch, self._heap))

    @property
    def first_interactive(self) -> Request | None:
        """The first interactive request that waits for nothing but its turn."""
        ready = (RequestStatus.WAITING, RequestStatus.PREEMPTED)
        found = (each for each in self._heap if not _is_of_batch(each) and each.status in ready)
        return min(found, default=None)


class InteractiveFirstScheduler(Scheduler):
    """Schedules interactive requests first; for engines that compute one step after the other."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._queue = self.waiting = InteractiveFirstQueue()
        self._full_step_tokens: int = cast(Any, self).max_num_scheduled_tokens
        can_split_prompts = self.scheduler_config.enable_chunked_prefill
        self._short_step_tokens = _SHORT_STEP_TOKENS if can_split_prompts else self._full_step_tokens
        self._asked_at = self._batches_at = -_ALERT_SECONDS
        self._not_admitted: Request | None = None
        """The interactive request that the last step did not admit."""

    def add_request(self, request: Request) -> None:
        """Queue a new request."""
        sampling = request.sampling_params
        if sampling is not None and sampling.prompt_logprobs is not None:
            request.arrival_time += _SCORED_LATER_SECONDS  # vLLM only orders by it
        super().add_request(request)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Choose what the next step computes."""
        now = time.monotonic()
        batches = [request for request in self.running if _is_of_batch(request)]
        interactive = [request for request in self.running if not _is_of_batch(request)]
        waiting = self._queue.first_interactive
        is_asked = bool(interactive or waiting)
        if is_asked:
            self._asked_at = now
        if not (batches or self._queue.has_batches):
            self._limit_step(self._full_step_tokens, admits_interactive=True, admits_batches=True)
            return super().schedule(throttle_prefills)
        is_turn = not is_asked or self._is_turn_of_batches(now, interactive, waiting)
        if is_turn:
            self._batches_at = now
        elif waiting is not None and waiting is self._not_admitted and batches:
            self._make_room(batches, now)
        for request in interactive if is_turn else batches:
            request.next_decode_eligible_step = self.current_step + 2  # the step after this one
        is_short = is_turn and now - self._asked_at < _ALERT_SECONDS
        self._limit_step(
            self._short_step_tokens if is_short else self._full_step_tokens,
            admits_interactive=not (is_asked and is_turn),
            admits_batches=is_turn,
        )
        scheduled = super().schedule(throttle_prefills)
        self._not_admitted = None if is_turn else self._queue.first_interactive
        return scheduled

    def _limit_step(self, tokens: int, *, admits_interactive: bool, admits_batches: bool) -> None:
        self.max_num_scheduled_tokens = tokens
        self._queue.admits_interactive, self._queue.admits_batches = admits_interactive, admits_batches

    def _is_turn_of_batches(self, now: float, interactive: list[Request], waiting: Request | None) -> bool:
        wait_for_first_token = waiting is not None or any(each.is_prefill_chunk for each in interactive)
        longest = _TURN_BEFORE_FIRST_TOKEN_SECONDS if wait_for_first_token else _TURN_SECONDS
        return now - self._batches_at > longest

    def _make_room(self, batches: list[Request], now: float) -> None:
        """Return the newest request of a batch to the queue: its cache or its place is needed."""
        newest = max(batches)
        batches.remove(newest)
        self.running.remove(newest)
        self._preempt_request(newest, now)


class AsyncInteractiveFirstScheduler(InteractiveFirstScheduler, AsyncScheduler):
    """The same for engines that prepare a step while the one before it is computed."""


def _is_of_batch(request: Request) -> bool:
    return request.priority > 0
