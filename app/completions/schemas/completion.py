"""`POST /v1/completions`: the request."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from typing_extensions import override

from app.completions.answers import CompletionAnswer
from app.completions.schemas.beginning import CHARACTERS
from app.completions.schemas.prompts import Prompt, most_tokens, one_by_one
from app.completions.schemas.sampling import SamplingParameters, TokensOrNone
from app.core.errors import InvalidRequestError
from app.core.settings import BaseModelEntry

_DEFAULT_MAX_TOKENS = 16
_MOST_ANSWERS = 128
"""To one request: its prompts times `n`. The engine works on each as on a request of its own."""


class CompletionRequest(SamplingParameters):
    """`POST /v1/completions`, the legacy kind: bare prompts, without a chat template.

    With `echo` and `logprobs` it scores its prompts: the answer has the log-probability of each of their
    tokens, and with `max_tokens` 0 nothing else.
    """

    path = "/v1/completions"

    prompt: Prompt
    max_tokens: TokensOrNone | None = None
    logprobs: Annotated[int, Field(ge=0, le=5, strict=True)] | None = None
    echo: bool | None = None
    best_of: Annotated[int | None, Field(ge=0, le=20, strict=True, exclude=True)] = None
    suffix: Annotated[str | None, Field(exclude=True)] = None

    @override
    def check(self, base: BaseModelEntry) -> None:
        if self.suffix:
            raise InvalidRequestError(
                "'suffix' is not supported, because the models here do not fill in the middle. Leave it out.",
                code="unsupported_parameter",
                param="suffix",
            )
        if self.best_of not in (None, self.n or 1):
            raise InvalidRequestError(
                "'best_of' is not supported, unless it equals 'n'. Ask for 'n' answers with 'logprobs', and "
                "keep the best.",
                code="unsupported_parameter",
                param="best_of",
            )
        self._check_echo()
        self._check_prompts(base)
        super().check(base)

    @override
    def beginning(self) -> str:
        first = one_by_one(self.prompt)[0]
        return first[:CHARACTERS] if isinstance(first, str) else str(first[: CHARACTERS // 4])

    @override
    def count_logprobs(self, context: int) -> int:
        counted = super().count_logprobs(context)
        if self.logprobs is None:
            return counted
        max_tokens = _DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        echoed = [most_tokens(prompt) if self.echo else 0 for prompt in one_by_one(self.prompt)]
        listed = sum(min(tokens + max_tokens, context) for tokens in echoed)
        return counted + listed * (self.n or 1) * (self.logprobs + 1)

    @override
    def count_prompt_tokens(self, context: int) -> int:
        return sum(min(most_tokens(prompt), context) for prompt in one_by_one(self.prompt))

    @override
    def count_answers(self) -> int:
        return len(one_by_one(self.prompt)) * (self.n or 1)

    @override
    def count_tokens(self, context: int) -> int:
        max_tokens = _DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        counted = (most_tokens(prompt) + max_tokens for prompt in one_by_one(self.prompt))
        return (self.n or 1) * sum(min(tokens, context) for tokens in counted)

    @override
    def most_answer_tokens(self, context: int) -> tuple[int, bool]:
        max_tokens = _DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        return self.count_answers() * min(max_tokens, context), True

    def _check_echo(self) -> None:
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequestError(
                "'max_tokens' may be 0 only with 'echo', which returns the prompt: there would be no answer.",
                code="invalid_value",
                param="max_tokens",
            )
        if self.echo and self.prompt_logprobs is not None and self.prompt_logprobs < (self.logprobs or 0):
            raise InvalidRequestError(
                "With 'echo', 'prompt_logprobs' must not be less than 'logprobs'.",
                code="invalid_value",
                param="prompt_logprobs",
            )

    def _check_prompts(self, base: BaseModelEntry) -> None:
        prompts = one_by_one(self.prompt)
        if (answers := self.count_answers()) > _MOST_ANSWERS:
            raise InvalidRequestError(
                f"{len(prompts)} prompts with 'n' {self.n} are {answers} answers, and a "
                f"request can have {_MOST_ANSWERS}. Send fewer prompts at once.",
                code="invalid_value",
                param="n",
            )
        for prompt in prompts:
            if isinstance(prompt, list) and len(prompt) >= base.context:
                raise InvalidRequestError(
                    f"A prompt has {len(prompt):,} tokens. The context of '{base.name}' is {base.context:,} "
                    "tokens, of which at least one is for the answer.",
                    code="context_length_exceeded",
                    param="prompt",
                )

    @override
    def new_answer(self) -> CompletionAnswer:
        return CompletionAnswer(
            include_usage=self.includes_usage,
            prompt_logprobs=self.prompt_logprobs is not None,
            only_echoes=self.max_tokens == 0,
        )
