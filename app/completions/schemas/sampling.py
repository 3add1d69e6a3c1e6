"""What requests for completions have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, Tag
from typing_extensions import override

from app.completions.answers import Answer
from app.completions.schemas.constraint import ConstrainingSchema
from app.completions.schemas.refusals import by_json_type, refused
from app.core.errors import InvalidRequestError
from app.core.settings import BaseModelEntry

Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_MOST = 2**31 - 1
"""The largest count: engines keep counts in 32 bits."""
RepetitionPenalty = Annotated[float, Field(ge=0.01, le=2, allow_inf_nan=False)]
"""Engines divide by it in 32 bits, in which much smaller ones are 0."""
Tokens = Annotated[int, Field(ge=1, le=_MOST, strict=True)]
TokensOrNone = Annotated[int, Field(ge=0, le=_MOST, strict=True)]
TopK = Annotated[int, Field(ge=-1, le=_MOST, strict=True)]
Choices = Annotated[int, Field(ge=1, le=16, strict=True)]
StopText = Annotated[str, Field(min_length=1)]
Stop = Annotated[
    Annotated[StopText, Tag("a text")] | Annotated[list[StopText], Field(max_length=4), Tag("a list")],
    by_json_type("a text", "a list of at most 4 texts"),
]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63, strict=True)]
BiasedToken = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
"""A token's id, as JSON writes it where it is a key."""

_MOST_LOGPROBS = 2**18
"""In one answer. The engine makes Python objects of them all at once, while its other requests wait."""


_MOST_TOKENS = 2**21
"""In all answers to one request, each with its prompt. A single answer is bounded by the context alone."""


class JsonSchema(BaseModel):
    """The schema that an answer must fit."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: ConstrainingSchema = Field(alias="schema")
    strict: bool | None = None


class PlainFormat(BaseModel):
    """An answer that is text or, as the older JSON mode has it, any JSON object."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object"]


class JsonSchemaFormat(BaseModel):
    """An answer that fits a JSON Schema."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[PlainFormat | JsonSchemaFormat, Field(discriminator="type")]
"""The shape of the answer."""


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool | None = None


class GatewayRequest(BaseModel, ABC):
    """What every request to the gateway has, whatever its route."""

    model_config = ConfigDict(extra="forbid")

    path: ClassVar[str]
    """The route, which is the same here and at the engine."""

    model: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\u0000]*$")]
    stream: bool | None = None

    # OpenAI's fields that are accepted and not passed on.
    user: Annotated[str | None, Field(exclude=True)] = None
    metadata: Annotated[dict[str, Any] | None, Field(exclude=True)] = None
    store: Annotated[bool | None, Field(exclude=True)] = None
    service_tier: Annotated[str | None, Field(exclude=True)] = None
    prompt_cache_key: Annotated[str | None, Field(exclude=True)] = None
    prompt_cache_retention: Annotated[str | None, Field(exclude=True)] = None
    prompt_cache_options: Annotated[dict[str, Any] | None, Field(exclude=True)] = None
    safety_identifier: Annotated[str | None, Field(exclude=True)] = None
    moderation: Annotated[
        None, refused("answers are not moderated here; leave it out"), Field(exclude=True)
    ] = None

    @abstractmethod
    def new_answer(self) -> Answer:
        """Returns the answer, for an engine to fill, in the shape that this request asks for."""

    def check(self, base: BaseModelEntry) -> None:
        """Checks that a base model supports what the request asks for.

        Raises:
            InvalidRequestError: it does not; the message says what to set in the base's catalogue entry.
        """

    @abstractmethod
    def most_answer_tokens(self, context: int) -> tuple[int, bool]:
        """Returns how many tokens all answers have at most, at a base of that context, and whether the
        request says so, rather than the context alone.
        """

    @abstractmethod
    def beginning(self) -> str:
        """Returns the prompt's first characters, the same for all requests of one conversation."""

    def for_engine(self, model: str, project_id: str) -> bytes:
        """Returns the request body for the engine: the allowed fields, and those that clients may not set."""
        fixed = orjson.dumps({"model": model, "cache_salt": project_id, **self._set_by_gateway()})
        allowed = self.model_dump_json(
            exclude={"model", *self._withheld()}, exclude_unset=True, exclude_none=True, by_alias=True
        )
        return fixed[:-1] + b"," + allowed.encode()[1:]  # never empty, since a prompt is required

    def _set_by_gateway(self) -> dict[str, Any]:
        return {}

    def _withheld(self) -> set[str]:
        """The client's fields that the engine is not sent."""
        return set()


class SamplingParameters(GatewayRequest, ABC):
    """The parameters that both kinds of completion share."""

    stream_options: Annotated[StreamOptions | None, Field(exclude=True)] = None
    max_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    n: Choices | None = None
    stop: Stop | None = None
    seed: Seed | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: (
        Annotated[dict[BiasedToken, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=300)] | None
    ) = None

    # vLLM's own fields, which OpenAI's client sends with `extra_body`.
    top_k: TopK | None = None
    min_p: Probability | None = None
    repetition_penalty: RepetitionPenalty | None = None
    min_tokens: TokensOrNone | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=20, strict=True)] | None = None

    @override
    def check(self, base: BaseModelEntry) -> None:
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidRequestError(
                "'prompt_logprobs' cannot be streamed. Leave out 'stream'.",
                code="invalid_value",
                param="prompt_logprobs",
            )
        self._check_tokens(base)
        if (counted := self.count_logprobs(base.context)) > _MOST_LOGPROBS:
            raise InvalidRequestError(
                f"The answer may have {_MOST_LOGPROBS:,} log-probabilities, and this one would have up to "
                f"{counted:,}. Ask for fewer of each token, for fewer or shorter answers ('n', "
                "'max_tokens'), or send fewer or shorter prompts at once.",
                code="invalid_value",
                param="logprobs" if self.prompt_logprobs is None else "prompt_logprobs",
            )

    def count_logprobs(self, context: int) -> int:
        """Returns how many log-probabilities the answer has at most, at a base of that context."""
        if self.prompt_logprobs is None:
            return 0
        return self.count_prompt_tokens(context) * (self.prompt_logprobs + 1)

    @abstractmethod
    def count_prompt_tokens(self, context: int) -> int:
        """Returns how many tokens the prompts have at most, at a base of that context."""

    @abstractmethod
    def count_answers(self) -> int:
        """Returns how many answers are asked for."""

    @abstractmethod
    def count_tokens(self, context: int) -> int:
        """Returns how many tokens all answers have at most, each with its prompt."""

    def _check_tokens(self, base: BaseModelEntry) -> None:
        answers = self.count_answers()
        if answers == 1 or answers * base.context <= _MOST_TOKENS:
            return
        if (counted := self.count_tokens(base.context)) > _MOST_TOKENS:
            raise InvalidRequestError(
                f"The {answers} answers may have up to {counted:,} tokens with their prompts. Those to one "
                f"request may have {_MOST_TOKENS:,}. Send a smaller 'max_tokens' or 'n', or fewer prompts.",
                code="invalid_value",
                param="n" if self.n not in (None, 1) else "prompt",
            )

    @property
    def includes_usage(self) -> bool:
        """Whether a stream is to state the usage at its end."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @override
    def _set_by_gateway(self) -> dict[str, Any]:
        return {"stream_options": {"include_usage": True}} if self.stream else {}
