"""Admits requests within the limits of their project and key, or refuses them with 429."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from sqlalchemy.exc import SQLAlchemyError

from app.auth.caller import Caller
from app.core.database import Database
from app.core.errors import RateLimitError
from app.core.stale_while_revalidate import StaleWhileRevalidate
from app.limits import service
from app.limits.headers import rate_limit_headers, retry_headers
from app.limits.quota import ExhaustedError, Quota, Quotas, Taken
from app.limits.shared_store import SharedStore
from app.limits.store import MemoryStore, Store

log = logging.getLogger("toque.limits")

_SECONDS_OF_AN_ANSWER = 1.0
"""After which a request is to be tried again that is one too many at the same time."""
_MOST_REMEMBERED = 10_000
_BYTES_OF_A_TOKEN = 2
"""Fewer than the three or four that an English text has, since other texts have fewer."""
_TOKENS_OF_TEMPLATE = 32
_WORDS = {
    "requests": "requests per min (RPM)",
    "tokens": "tokens per min (TPM)",
    "concurrent_requests": "concurrent requests",
}


def estimate_tokens(content: bytes) -> int:
    """Return about how many tokens the prompt of a request has, rather too many than too few."""
    return _TOKENS_OF_TEMPLATE + len(content) // _BYTES_OF_A_TOKEN


class Admission:
    """A request that was admitted, with what it has taken."""

    def __init__(self, store: Store, taken: Sequence[Taken], headers: Mapping[str, str]) -> None:
        self._store = store
        self._taken = taken
        self.headers = headers
        """For the response, whatever it will be."""

    async def settle(self, tokens: int) -> None:
        """Give back what was not used, once the request has ended; so many tokens were."""
        back = [
            (each, 1 if each.quota.kind == "concurrent_requests" else each.amount - tokens)
            for each in self._taken
            if each.quota.kind != "requests"
        ]
        if not back:
            return
        try:
            await self._store.give_back(back)
        except SQLAlchemyError as error:
            log.warning("tokens cannot be given back: %s", type(error).__name__)


class RateLimiter:
    """The limits as one gateway knows them. Changes take effect within three seconds."""

    def __init__(self, database: Database) -> None:
        self._database = database
        is_shared = database.engine.dialect.name == "postgresql"
        self._store: Store = SharedStore(database) if is_shared else MemoryStore()
        self._quotas: StaleWhileRevalidate[tuple[str, str], Quotas] = StaleWhileRevalidate(
            self._find_quotas, fresh_seconds=1.0, stale_seconds=3.0
        )
        self._exhausted: dict[str, tuple[int, float]] = {}
        """By quota that is known to be exhausted: its bound, and until when (monotonic seconds)."""
        self._unlimited = Admission(self._store, (), {})
        self.run = self._store.run

    async def check(self, caller: Caller) -> None:
        """Refuse a request whose body need not be read, since its caller has no requests or tokens left.

        Raises:
            RateLimitError: that is known here.
        """
        quotas = await self._quotas.get((caller.project_id, caller.key_id))
        for quota in quotas.of_all_models:
            self._check(quota)

    async def admit(
        self, caller: Caller, base_model: str, prompt_tokens: int, answer_tokens: tuple[int, bool]
    ) -> Admission:
        """Count a request.

        Args:
            caller: who asks.
            base_model: the base of the model that is asked.
            prompt_tokens: of its prompt, by estimate.
            answer_tokens: of its answers at most, and whether the caller says so, not only the context.

        Raises:
            RateLimitError: the caller has to wait, or the request alone is more than a minute's tokens.
        """
        quotas = (await self._quotas.get((caller.project_id, caller.key_id))).at(base_model)
        if not quotas:
            return self._unlimited
        wanted = [(quota, _amount(quota, prompt_tokens, *answer_tokens)) for quota in quotas]
        for quota in quotas:
            self._check(quota)
        try:
            taken = await self._store.take(wanted)
        except ExhaustedError as error:
            raise self._refusal(error) from None
        states = ((each.quota, each.used, each.seconds_left) for each in taken)
        return Admission(self._store, taken, rate_limit_headers(states))

    def _check(self, quota: Quota) -> None:
        most, until = self._exhausted.get(quota.name, (0, 0.0))
        seconds_left = until - time.monotonic()
        if most == quota.most and seconds_left > 0:
            raise _error(ExhaustedError(quota, 1, most, seconds_left))

    def _refusal(self, error: ExhaustedError) -> RateLimitError:
        quota = error.quota
        if error.used >= quota.most and quota.kind == "requests":  # which are never given back
            if len(self._exhausted) >= _MOST_REMEMBERED:
                self._exhausted.clear()
            self._exhausted[quota.name] = quota.most, time.monotonic() + error.seconds_left
        return _error(error)

    def _find_quotas(self, key: tuple[str, str]) -> Quotas:
        with self._database.reader() as session:
            return service.find_quotas(session, *key)


def _amount(quota: Quota, prompt_tokens: int, answer_tokens: int, is_said: bool) -> int:
    """Return what a request takes of a quota until it is known what it uses."""
    if quota.kind != "tokens":
        return 1
    tokens = prompt_tokens + answer_tokens
    return tokens if is_said else max(prompt_tokens, min(tokens, quota.most))


def _error(refused: ExhaustedError) -> RateLimitError:
    quota = refused.quota
    what = f"{_WORDS[quota.kind]}: Limit {quota.most}, Used {refused.used}, Requested {refused.amount}."
    kind = "requests" if quota.kind == "concurrent_requests" else quota.kind
    state = rate_limit_headers([(quota, refused.used, refused.seconds_left)])
    if refused.amount > quota.most:
        message = f"Request too large on {what} Send a shorter prompt or a smaller 'max_tokens'."
        return RateLimitError(message, kind=kind, headers={**state, "x-should-retry": "false"})
    seconds = refused.seconds_left or _SECONDS_OF_AN_ANSWER
    message = f"Rate limit reached on {what} Please try again in {max(seconds, 0.001):.3g}s."
    return RateLimitError(message, kind=kind, headers={**state, **retry_headers(seconds)})
