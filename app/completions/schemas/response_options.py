"""Options of `POST /v1/responses`: the answer's shape, the reasoning before it, and what is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from app.completions.schemas.constraint import ConstrainingSchema
from app.completions.schemas.reasoning import ReasoningEffort
from app.completions.schemas.refusals import only, refused


class TextFormat(BaseModel):
    """The shape of the answer's text."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    description: str | None = None
    schema_: Annotated[ConstrainingSchema | None, Field(alias="schema")] = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> Self:
        if self.type == "json_schema" and (self.name is None or self.schema_ is None):
            raise ValueError("a 'json_schema' needs a 'name' and a 'schema'")
        return self

    def as_object(self) -> dict[str, Any]:
        """Returns the format as the response repeats it, and as engines take it."""
        if self.type != "json_schema":
            return {"type": self.type}
        return self.model_dump(by_alias=True, exclude_none=True)


class TextOptions(BaseModel):
    """How the answer's text is to be."""

    model_config = ConfigDict(extra="forbid")

    format: TextFormat = TextFormat()
    verbosity: Annotated[
        Literal["medium"] | None,
        only("medium", says=lambda _: "these models have one verbosity; leave it out, or send 'medium'"),
    ] = None

    def as_object(self) -> dict[str, Any]:
        """Returns the options as the response repeats them."""
        return {"format": self.format.as_object()} | self.model_dump(include={"verbosity"}, exclude_none=True)


class ReasoningOptions(BaseModel):
    """How much the model is to think before it answers. Its thoughts come whole, so there is no summary.

    `mode` and `context` mean nothing to these models: the former is dropped, and their templates choose
    which thoughts they see again.
    """

    model_config = ConfigDict(extra="forbid")

    effort: ReasoningEffort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    mode: Annotated[str, Field(max_length=64)] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None


class StreamOptions(BaseModel):
    """Options of a stream; its events are never padded."""

    model_config = ConfigDict(extra="forbid")

    include_obfuscation: bool | None = None


Include = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]
"""What a response may include beside its text. No response here has what the others than log-probabilities
name, so asking for them changes nothing."""


Truncation = Annotated[
    Literal["disabled"] | None,
    only("disabled", says=lambda _: "conversations are not shortened for you; send what fits"),
]
Background = Annotated[
    None,
    refused("responses are not generated in the background here; with 'stream' you see them grow"),
    BeforeValidator(lambda given: None if given is False else given),
]
Conversation = Annotated[None, refused("continue a response with 'previous_response_id' instead")]
Prompt = Annotated[None, refused("send the prompt's text as 'instructions' or 'input' instead")]
ContextManagement = Annotated[None, refused("shorten the conversation yourself instead")]
