"""The gateway: resolves the model of a completion request, and has an engine answer it."""

from __future__ import annotations

from functools import partial

from starlette.types import Scope

from app.auth.caller import Caller
from app.completions.completion_response import CompletionResponse
from app.completions.conversations import Conversations
from app.completions.generation_metrics import GenerationMetrics
from app.completions.replicas import Replica, Replicas
from app.completions.schemas import GatewayRequest
from app.core.database import Database
from app.core.scope import ARRIVED_AT, MODEL
from app.core.settings import Settings
from app.core.stale_while_revalidate import StaleWhileRevalidate
from app.limits.rate_limiter import RateLimiter, estimate_tokens
from app.models.adapters.served_models import ServedModel
from app.models.aliases import resolution
from app.models.aliases.target import Target
from app.usage.aggregator import UsageAggregator

_AFTER_OTHERS = b'{"priority":1,'
"""The beginning of a request that the engine answers after those without a priority."""
_BACKGROUND_SECONDS = 24 * 3600.0
"""How long an engine may be silent about a request in the background, while it answers others."""


class Gateway:
    """The state that all completions of this process share."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        replicas: Replicas,
        usage: UsageAggregator,
        rate_limiter: RateLimiter,
        metrics: GenerationMetrics,
    ) -> None:
        self._settings = settings
        self._database = database
        self._replicas = replicas
        self._usage = usage
        self.rate_limiter = rate_limiter
        self._metrics = metrics
        self._conversations = Conversations(settings, database)
        # Once an alias is moved, every gateway uses its new model within two seconds.
        self._targets: StaleWhileRevalidate[tuple[str, str], Target] = StaleWhileRevalidate(
            self._find_target, fresh_seconds=0.5, stale_seconds=1.5
        )

    async def answer(self, scope: Scope, caller: Caller, body: GatewayRequest) -> CompletionResponse:
        """Returns a response that asks an engine when it is sent.

        Raises:
            PermissionDeniedError: the caller may not ask this model.
            NotFoundError: the project has no such model or alias.
            InvalidRequestError: the model's base does not support what the request asks for.
            RateLimitError: the caller's project or key has used up what it may.
        """
        scope[MODEL] = body.model
        caller.check_model(body.model)
        project_id = caller.project_id
        key = (project_id, body.model)
        target = await self._targets.get(key)
        served = target.model_for(body.user)
        scope[MODEL] = served.name
        body.check(served.base)
        await self._conversations.resolve(project_id, body)
        content = body.for_engine(served.name, project_id)
        prompt_tokens, answer_tokens = estimate_tokens(content), body.most_answer_tokens(served.base.context)
        admission = await self.rate_limiter.admit(caller, served.base_model, prompt_tokens, answer_tokens)
        count = partial(self._usage.count, project_id, served.name, alias=target.alias, key_id=caller.key_id)
        look_up_now = partial(self._targets.look_up_now, key)
        return CompletionResponse(
            self._replicas,
            count,
            admission,
            served,
            _placement_key(served, project_id, body),
            look_up_now,
            body,
            content,
            scope[ARRIVED_AT],
            self._metrics,
        )

    async def resolve(self, project_id: str, name: str) -> Target:
        """Returns the models that the project means by this name.

        Raises:
            NotFoundError: the project has no such model or alias.
            FailedDependencyError: the model is quarantined.
        """
        return await self._targets.get((project_id, name))

    async def ask(self, project_id: str, body: GatewayRequest, *, in_background: bool = False) -> bytes:
        """Returns the whole answer to a request that the service itself makes for a project.

        Nobody waits for the answer to a request in the background: engines answer all others first.

        Raises:
            NotFoundError: the project has no such model or alias.
            UnavailableError: no engine is ready, or none answered.
            InvalidRequestError: the model's base does not support what the request asks for, or the engine
                refused it.
        """
        target = await self.resolve(project_id, body.model)
        served = target.model_for(body.user)
        body.check(served.base)
        await self._conversations.resolve(project_id, body)
        content = body.for_engine(served.name, project_id)
        answer = body.new_answer()

        async def send(replica: Replica) -> bytes:
            postponed = in_background and replica.is_ours
            async with replica.awaiting_first_byte():
                upstream = await replica.connection.post(
                    body.path,
                    _AFTER_OTHERS + content[1:] if postponed else content,
                    read_timeout=_BACKGROUND_SECONDS if in_background else None,
                )
                try:
                    return answer.whole(await replica.connection.read_all(upstream))
                finally:
                    upstream.close()  # stops the engine's work on an unfinished answer

        placed = _placement_key(served, project_id, body)
        whole = await answer.finish(await self._replicas.ask(served.base_model, placed, send))
        tokens = answer.prompt_tokens, answer.completion_tokens
        self._usage.count(project_id, served.name, *tokens, alias=target.alias)
        self._metrics.count_tokens(body.path, served.name, *tokens)
        return whole

    def _find_target(self, key: tuple[str, str]) -> Target:
        project_id, name = key
        with self._database.reader() as session:
            return resolution.resolve(session, self._settings, project_id, name)


def _placement_key(served: ServedModel, project_id: str, body: GatewayRequest) -> str:
    """Returns what is asked of the same engine, as far as its load allows.

    That is an adapter; or, for a base model alone, a prompt's beginning, since the engine caches its
    beginnings by project.
    """
    return f"{project_id} {body.beginning()}" if served.is_base else served.name
