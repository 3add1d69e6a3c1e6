"""The events of a streamed response: what of an engine's events is read, and passed on."""

from __future__ import annotations

from msgspec import Struct

from app.completions.answers.response_items import Item, Part


class InputTokensDetails(Struct):
    """Of the input's tokens: those whose keys and values the engine still had, or wrote for later."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct):
    """Of the output's tokens: those of reasoning."""

    reasoning_tokens: int = 0


class Usage(Struct):
    """`ResponseUsage`."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class EngineResponse(Struct):
    """What is read of an engine's response; the rest of it repeats the request."""

    model: str
    status: str
    temperature: float
    top_p: float
    output: list[Item] = []
    usage: Usage | None = None


class StreamedTopLogprob(Struct):
    """A token that was likely at some position."""

    token: str
    logprob: float


class StreamedLogprob(Struct):
    """`ResponseLogProb`: a token of the answer, and those that were likely in its place."""

    token: str
    logprob: float
    top_logprobs: list[StreamedTopLogprob] = []


class Created(Struct, tag="response.created"):
    """The response exists."""

    response: EngineResponse


class InProgress(Struct, tag="response.in_progress"):
    """It is being generated."""

    response: EngineResponse


class Completed(Struct, tag="response.completed"):
    """It has ended. An engine also says so of a response that reached the most tokens it may have."""

    response: EngineResponse


class ItemEvent(Struct, kw_only=True):
    """An event of one output item."""

    output_index: int
    sequence_number: int = 0


class ItemAdded(ItemEvent, tag="response.output_item.added"):
    """An item begins."""

    item: Item


class ItemDone(ItemEvent, tag="response.output_item.done"):
    """An item is complete."""

    item: Item


class InItem(ItemEvent, kw_only=True):
    """An event within an item."""

    item_id: str


class PartAdded(InItem, tag="response.content_part.added"):
    """A part of a message or a reasoning item begins."""

    content_index: int
    part: Part


class PartDone(InItem, tag="response.content_part.done"):
    """A part is complete."""

    content_index: int
    part: Part


class TextDelta(InItem, tag="response.output_text.delta"):
    """More of a message's text."""

    content_index: int
    delta: str
    logprobs: list[StreamedLogprob] = []


class TextDone(InItem, tag="response.output_text.done"):
    """A message's text is complete."""

    content_index: int
    text: str
    logprobs: list[StreamedLogprob] = []


class ReasoningDelta(InItem, tag="response.reasoning_text.delta"):
    """More of the reasoning."""

    content_index: int
    delta: str


class ReasoningDone(InItem, tag="response.reasoning_text.done"):
    """The reasoning is complete."""

    content_index: int
    text: str


class ArgumentsDelta(InItem, tag="response.function_call_arguments.delta"):
    """More of a function call's arguments."""

    delta: str


class ArgumentsDone(InItem, tag="response.function_call_arguments.done"):
    """A function call's arguments are complete."""

    arguments: str
    name: str


Growth = (
    ItemAdded
    | ItemDone
    | PartAdded
    | PartDone
    | TextDelta
    | TextDone
    | ReasoningDelta
    | ReasoningDone
    | ArgumentsDelta
    | ArgumentsDone
)
Event = Created | InProgress | Completed | Growth
