"""vLLM's scheduler, which answers requests that somebody waits for first, and lets projects take turns.

Requests of batches have the priority 1, all others 0 (`app.completions.gateway`). vLLM alone would sort the
queue by priority, but compute both in one step, which takes the longer the more it computes. Here they never
share a step:

- While an interactive request is computed or waits, batches get no tokens. Their requests keep their places
  in the KV cache, unless an interactive request needs them.
- For some seconds after that, the steps of batches are short, since the next interactive request has to wait
  for the step that is being computed.
- So that no batch starves, it gets a short step of its own once in a while, also between the tokens of
  interactive requests. One that has no place yet gets it too, unless they
  lack room themselves.

Among interactive requests, the next one is of the project that computes the fewest (`FairQueue`). If there is
no room for it, the project that computes the most gives up the place of its newest request, provided that it
computes more than twice as many. That request returns to the queue, and goes on when there is room. While a
request waits for its first token, projects with far more requests get no tokens (`ProjectTurns`). For some
seconds after that, steps are shorter, so that the next one waits less for the step that is being computed.

Prompts that are scored are interactive, but come many at a time: others of the project that arrive soon after
them go ahead.

Without interactive requests, steps are vLLM's own.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, cast

from typing_extensions import override
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import PriorityRequestQueue, RequestQueue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from workers.inference.fair_queue import FairQueue, project_of
from workers.inference.grammars import cancel_compilation, compile_in_background
from workers.inference.ordered_queue import OrderedQueue
from workers.inference.project_turns import ProjectTurns

_ALERT_SECONDS = 5.0
"""How long after an interactive request the steps of batches are short."""
_SHORT_STEP_TOKENS = 16
"""Tokens in a short step: one each of as many sequences, or a part of a prompt."""
_SHARED_STEP_PART = 64
"""The part of a full step's tokens that a step has while several projects share the engine."""
_SCORED_LATER_SECONDS = 30.0
"""How much later than it did a prompt that is scored counts as having arrived."""
_TURN_SECONDS = 0.5
"""How long batches go without a step while interactive requests are computed."""
_TURN_BEFORE_FIRST_TOKEN_SECONDS = 2.0
"""The same while an interactive request waits for its first token."""


class InteractiveFirstQueue(OrderedQueue):
    """The queues of waiting requests, interactive ones first, each of which can be closed."""

    def __init__(self) -> None:
        self.interactive, self.batches = FairQueue(), PriorityRequestQueue()
        self.admits_interactive = self.admits_batches = True

    @property
    def ready(self) -> Iterator[Request]:
        """The interactive requests that wait for nothing but their turn, in their order."""
        return filter(_is_ready, self.interactive)

    @override
    def add_request(self, request: Request) -> None:
        self._queue_of(request).add_request(request)

    @override
    def pop_request(self) -> Request:
        return self._first_open.pop_request()

    @override
    def peek_request(self) -> Request:
        return self._first_open.peek_request()

    @override
    def remove_request(self, request: Request) -> None:
        self._queue_of(request).remove_request(request)

    @override
    def remove_requests(self, requests: Iterable[Request]) -> None:
        removed = set(requests)
        self.interactive.remove_requests(removed)
        self.batches.remove_requests(removed)

    @override
    def __bool__(self) -> bool:
        """Whether a request may be admitted."""
        return bool(self._first_open)

    @override
    def __len__(self) -> int:
        return len(self.interactive) + len(self.batches)

    @override
    def __iter__(self) -> Iterator[Request]:
        return chain(self.interactive, self.batches)

    @property
    def _first_open(self) -> RequestQueue:
        if self.admits_interactive and (self.interactive or not self.admits_batches):
            return self.interactive
        return self.batches if self.admits_batches else PriorityRequestQueue()

    def _queue_of(self, request: Request) -> RequestQueue:
        return self.batches if _is_of_batch(request) else self.interactive


class InteractiveFirstScheduler(Scheduler):
    """Schedules interactive requests first; for engines that compute one step after the other."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.grammars = compile_in_background(self.structured_output_manager)
        self._queue = self.waiting = InteractiveFirstQueue()
        self._full_step_tokens: int = cast(Any, self).max_num_scheduled_tokens
        self._can_split_prompts = self.scheduler_config.enable_chunked_prefill
        self._short_step_tokens = _SHORT_STEP_TOKENS if self._can_split_prompts else self._full_step_tokens
        self._asked_at = self._batches_at = -_ALERT_SECONDS
        max_adapters = None if self.lora_config is None else self.lora_config.max_loras
        self._turns = ProjectTurns(self._queue.interactive, max_adapters)
        self._without_room: Request | None = None
        """The interactive request that the last step had no room for."""

    def add_request(self, request: Request) -> None:
        """Queue a new request."""
        sampling = request.sampling_params
        if sampling is not None and sampling.prompt_logprobs is not None:
            request.arrival_time += _SCORED_LATER_SECONDS  # vLLM only orders by it
        super().add_request(request)

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        """End requests that somebody else has ended, such as those whose callers have left."""
        ended = super().finish_requests(request_ids, finished_status)
        cancel_compilation(ended)
        return ended

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Choose what the next step computes."""
        now = time.monotonic()
        batches = [request for request in self.running if _is_of_batch(request)]
        interactive = [request for request in self.running if not _is_of_batch(request)]
        self._queue.interactive.computed = Counter(map(project_of, interactive))
        if interactive or self._queue.interactive:
            self._asked_at = now
        full_step_tokens = self._let_projects_take_turns(interactive, now)
        if not (batches or self._queue.batches):
            return self._schedule_interactive(interactive, full_step_tokens, now, throttle_prefills)
        waiting = next(self._queue.ready, None)
        is_asked = bool(interactive or waiting)
        lacks_room = self._without_room is not None and _is_ready(self._without_room)
        has_place = not lacks_room and len(self.running) < self.max_num_active_reqs
        can_take_turn = bool(batches) or has_place
        is_turn = not is_asked or (can_take_turn and self._is_turn_of_batches(now, interactive, waiting))
        if is_turn:
            self._batches_at = now
        elif lacks_room:
            self._make_room(interactive, batches, now)
        for request in interactive if is_turn else batches:
            request.next_decode_eligible_step = self.current_step + 2  # the step after this one
        is_short = is_turn and now - self._asked_at < _ALERT_SECONDS
        self._limit_step(
            self._short_step_tokens if is_short else full_step_tokens,
            admits_interactive=not (is_asked and is_turn),
            admits_batches=is_turn and not lacks_room,
        )
        scheduled = super().schedule(throttle_prefills)
        self._without_room = None if is_turn else self._find_without_room(scheduled)
        return scheduled

    def _schedule_interactive(
        self, interactive: list[Request], tokens: int, now: float, throttle_prefills: bool
    ) -> SchedulerOutput:
        """Choose what a step computes while there are no requests of batches."""
        if self._without_room is not None and _is_ready(self._without_room):
            self._make_room(interactive, [], now)
        self._limit_step(tokens, admits_interactive=True, admits_batches=True)
        scheduled = super().schedule(throttle_prefills)
        self._without_room = self._find_without_room(scheduled)
        return scheduled

    def _let_projects_take_turns(self, interactive: list[Request], now: float) -> int:
        """Let projects with far more requests than another wait for its first tokens.

        Returns:
            The tokens of a full step.
        """
        waiting = next(self._queue.ready, None)
        held = self._turns.next(interactive, waiting, now)
        if held:
            for each in interactive:
                if project_of(each) in held:
                    each.next_decode_eligible_step = self.current_step + 2  # the step after this one
            if len(self.running) >= self.max_num_active_reqs:
                self._without_room = waiting
        if held or not (self._can_split_prompts and self._turns.is_alert(now)):
            return self._full_step_tokens
        computed = self._queue.interactive.computed
        self.running.sort(key=lambda each: computed[project_of(each)])  # they get tokens in this order
        return max(_SHORT_STEP_TOKENS, self._full_step_tokens // _SHARED_STEP_PART)

    def _limit_step(self, tokens: int, *, admits_interactive: bool, admits_batches: bool) -> None:
        self.max_num_scheduled_tokens = tokens
        self._queue.admits_interactive, self._queue.admits_batches = admits_interactive, admits_batches

    def _is_turn_of_batches(self, now: float, interactive: list[Request], waiting: Request | None) -> bool:
        wait_for_first_token = waiting is not None or any(each.is_prefill_chunk for each in interactive)
        longest = _TURN_BEFORE_FIRST_TOKEN_SECONDS if wait_for_first_token else _TURN_SECONDS
        return now - self._batches_at > longest

    def _find_without_room(self, scheduled: SchedulerOutput) -> Request | None:
        """Return the first interactive request that a step left waiting for a place or for cache.

        Those that wait for tokens of a step, or for one of the adapters to be done, get nothing from room.
        """
        adapters = {
            each.lora_request.lora_int_id
            for each in self.running
            if each.lora_request is not None and not _is_of_batch(each)
        }
        takes_any = self.lora_config is None or len(adapters) < self.lora_config.max_loras
        for each in self._queue.ready:
            if takes_any or each.lora_request is None or each.lora_request.lora_int_id in adapters:
                left = self.max_num_scheduled_tokens - scheduled.total_num_scheduled_tokens
                return each if left >= (1 if self._can_split_prompts else each.num_tokens) else None
        return None

    def _make_room(self, interactive: list[Request], batches: list[Request], now: float) -> None:
        """Return to the queue a request of a batch or of a greedy project: its cache or place is needed."""
        newest = max(batches) if batches else self._newest_of_greedy_project(interactive)
        if newest is not None:
            (batches if batches else interactive).remove(newest)
            self.running.remove(newest)
            self._preempt_request(newest, now)

    def _newest_of_greedy_project(self, interactive: list[Request]) -> Request | None:
        """Return the newest request of the project that computes the most, if it is to give up a place.

        It is if it computes more than twice as many as the one that needs a place then will.
        """
        computed = self._queue.interactive.computed
        if self._without_room is None or not computed:
            return None
        [(project, most)] = computed.most_common(1)
        if most <= 2 * (computed[project_of(self._without_room)] + 1):
            return None
        computed[project] -= 1
        return max((each for each in interactive if project_of(each) == project), key=_arrival)


class AsyncInteractiveFirstScheduler(InteractiveFirstScheduler, AsyncScheduler):
    """The same for engines that prepare a step while the one before it is computed."""


def _is_of_batch(request: Request) -> bool:
    return request.priority > 0


def _arrival(request: Request) -> float:
    return request.arrival_time


def _is_ready(request: Request) -> bool:
    """Whether a request waits for nothing but its turn."""
    return request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)
