"""`POST /v1/responses`: the request."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from pydantic import Field, PrivateAttr, Tag
from typing_extensions import override

from app.completions.answers import ResponseAnswer
from app.completions.answers.response import Keep
from app.completions.schemas.beginning import beginning_of
from app.completions.schemas.engine_items import to_engine
from app.completions.schemas.prompts import check_count
from app.completions.schemas.reasoning import check_reasoning
from app.completions.schemas.refusals import by_json_type
from app.completions.schemas.response_items import (
    InputItem,
    ItemObject,
    ItemReference,
    MessageItem,
)
from app.completions.schemas.response_options import (
    Background,
    ContextManagement,
    Conversation,
    Include,
    Prompt,
    ReasoningOptions,
    StreamOptions,
    TextOptions,
    Truncation,
)
from app.completions.schemas.response_tools import (
    AllowedTools,
    ChosenFunction,
    FunctionTool,
    Mode,
    ToolChoice,
    Tools,
)
from app.completions.schemas.sampling import (
    GatewayRequest,
    Probability,
    RepetitionPenalty,
    Seed,
    Temperature,
    Tokens,
    TopK,
)
from app.completions.schemas.tools import check_tools
from app.core.errors import InvalidRequestError
from app.core.settings import BaseModelEntry
from app.fine_tuning.schemas import Metadata
from app.responses.item_ids import item_id, new_response_id

_LOGPROBS = "message.output_text.logprobs"
_PASSED = {
    "stream",
    "instructions",
    "max_output_tokens",
    "temperature",
    "top_p",
    "seed",
    "top_k",
    "min_p",
    "repetition_penalty",
}
"""The fields that engines get as they are."""


class ResponseRequest(GatewayRequest):
    """`POST /v1/responses`. It is resolved before an engine gets it: see `resolve`."""

    path = "/v1/responses"

    input: Annotated[
        Annotated[str, Tag("a text")]
        | Annotated[list[InputItem], Field(min_length=1, max_length=4096, fail_fast=True), Tag("a list")],
        by_json_type("a text", "a list of items"),
    ]
    instructions: str | None = None
    previous_response_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    max_output_tokens: Tokens | None = None
    max_tool_calls: Tokens | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20, strict=True)] | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    include: Annotated[list[Include], Field(max_length=16, fail_fast=True)] | None = None
    truncation: Truncation = None
    stream_options: StreamOptions | None = None

    background: Background = None
    conversation: Conversation = None
    prompt: Prompt = None
    context_management: ContextManagement = None

    # vLLM's own fields, which OpenAI's client sends with `extra_body`.
    seed: Seed | None = None
    top_k: TopK | None = None
    min_p: Probability | None = None
    repetition_penalty: RepetitionPenalty | None = None

    _id: str = PrivateAttr(default_factory=new_response_id)
    _history: list[ItemObject] = PrivateAttr(default_factory=list[ItemObject])
    _own_items: list[ItemObject] = PrivateAttr(default_factory=list[ItemObject])
    _keep: Keep | None = PrivateAttr(default=None)

    @property
    def references(self) -> list[str]:
        """The ids of items of stored responses that the input refers to."""
        items = [] if isinstance(self.input, str) else self.input
        return [item.id for item in items if isinstance(item, ItemReference)]

    @property
    def own_items(self) -> list[ItemObject]:
        """The items of this request alone, as they are stored and listed."""
        return self._own_items

    def resolve(self, history: list[ItemObject], referred: dict[str, ItemObject], keep: Keep | None) -> None:
        """Sets what the model reads (the items of earlier responses, then those of this request), and what
        stores the response before its client sees its end.

        Raises:
            InvalidRequestError: the input refers to an item that is not among those given, or a call of a
                function or its output is missing.
        """
        given = [MessageItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        own: list[ItemObject] = []
        for place, item in enumerate(given):
            if not isinstance(item, ItemReference):
                own.append(item.as_object(item_id(self._id, item.type, place)))
            elif (stored := referred.get(item.id)) is not None:
                own.append(stored | {"id": item_id(self._id, stored["type"], place)})
            else:
                raise _unknown_item(item.id, place)
        _check_calls([*history, *own])
        self._history, self._own_items, self._keep = history, own, keep

    @override
    def check(self, base: BaseModelEntry) -> None:
        items = [] if isinstance(self.input, str) else self.input
        parts = (item.content for item in items if isinstance(item, MessageItem))
        check_count(len(items) + sum(len(part) for part in parts if isinstance(part, list)), base, "input")
        tools, choice = self._chosen_tools()
        named = choice.name if isinstance(choice, ChosenFunction) else None
        mode = "auto" if isinstance(choice, ChosenFunction) else choice
        check_tools(base, self.tools or (), mode, named, place="tools[{}]")
        if isinstance(self.tool_choice, AllowedTools) and len(tools) < len(self.tool_choice.tools):
            raise InvalidRequestError(
                "Invalid value for 'tool_choice.tools': a function is there twice, or not in 'tools'.",
                code="invalid_value",
                param="tool_choice.tools",
            )
        check_reasoning(base, self.reasoning.effort if self.reasoning else None, "reasoning.effort")

    @override
    def new_answer(self) -> ResponseAnswer:
        return ResponseAnswer(self._id, len(self._own_items), self._repeated(), self._keep)

    @override
    def beginning(self) -> str:
        items = (item for item in [*self._history, *self._own_items] if item["type"] == "message")
        turns = ((item["role"], "".join(part["text"] for part in item["content"])) for item in items)
        return beginning_of([("system", self.instructions or ""), *turns])

    @override
    def for_engine(self, model: str, project_id: str) -> bytes:
        body = self.model_dump(include=_PASSED, exclude_none=True)
        body |= {
            "model": model,
            "cache_salt": project_id,
            "store": False,  # it is the gateway that stores responses
            "input": to_engine([*self._history, *self._own_items]),
        }
        tools, choice = self._chosen_tools()
        if tools:
            named = choice.model_dump() if isinstance(choice, ChosenFunction) else choice
            body |= {"tools": [tool.as_object() for tool in tools], "tool_choice": named}
            if self.parallel_tool_calls is not None:
                body["parallel_tool_calls"] = self.parallel_tool_calls
        if self.reasoning and self.reasoning.effort:
            body["reasoning"] = {"effort": self.reasoning.effort}
        if self.text and self.text.format.type != "text":
            body["text"] = {"format": self.text.format.as_object()}
        if self.include and _LOGPROBS in self.include:
            body |= {"include": [_LOGPROBS], "top_logprobs": self.top_logprobs or 0}
        return orjson.dumps(body)

    def _chosen_tools(self) -> tuple[list[FunctionTool], Mode | ChosenFunction]:
        """Returns the tools that the model sees (of allowed ones no others), and which it is to call."""
        tools, choice = self.tools or [], self.tool_choice or "auto"
        if isinstance(choice, AllowedTools):
            allowed = {tool.name for tool in choice.tools}
            return [tool for tool in tools if tool.name in allowed], choice.mode
        return ([] if choice == "none" else tools), choice

    @override
    def most_answer_tokens(self, context: int) -> tuple[int, bool]:
        return min(self.max_output_tokens or context, context), self.max_output_tokens is not None

    def _repeated(self) -> dict[str, Any]:
        """Returns the fields that the response repeats of its request, or their defaults."""
        choice = self.tool_choice or "auto"
        reasoning = self.reasoning or ReasoningOptions()
        return {
            "background": False,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": self.previous_response_id,
            "prompt_cache_key": self.prompt_cache_key,
            "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary},
            "safety_identifier": self.safety_identifier,
            "service_tier": "default",
            "store": self._keep is not None,
            "text": (self.text or TextOptions()).as_object(),
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [tool.as_object() for tool in self.tools or []],
            "top_logprobs": self.top_logprobs or 0,
            "truncation": "disabled",
            **({} if self.user is None else {"user": self.user}),
        }


def _check_calls(items: list[ItemObject]) -> None:
    """Checks that every function call has an output, and every output a call, as chat templates expect."""
    calls = {item["call_id"] for item in items if item["type"] == "function_call"}
    outputs = {item["call_id"] for item in items if item["type"] == "function_call_output"}
    for call_id in sorted(calls ^ outputs):
        known, missing, remedy = f"function call '{call_id[:64]}'", "output", "send its output as an item"
        if call_id in outputs:
            known, missing = f"function call's output '{call_id[:64]}'", "call"
            remedy = "send the call before it, or continue its response with 'previous_response_id'"
        raise InvalidRequestError(
            f"The {known} has no {missing}: {remedy}.", code="invalid_value", param="input"
        )


def _unknown_item(reference: str, place: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"No item '{reference}' to refer to: its response was not stored, has expired, or was deleted. Send "
        "the item itself.",
        code="item_not_found",
        param=f"input[{place}].id",
    )
