"""An example as it is learned: its text, of which each part is learned or only read.

Text and tokens are those of the trainer (`app.datasets.chat_template`). The text is cut into turns where the
template, given fewer messages, writes the same beginning.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from app.datasets.chat_template import ChatTemplate, SpelledExample
from app.datasets.line_search import places_of
from app.datasets.types import (
    ChatExample,
    CompletionExample,
    Example,
    ExampleError,
    Message,
    PreferenceExample,
)

_MOST_TURNS = 64
"""The text of a longer conversation is not cut into turns."""
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Run:
    """A part of a text whose characters are alike."""

    text: str
    is_learned: bool = False
    is_control: bool = False
    """Whether it is one of the base model's control tokens."""
    is_template: bool = False
    """Whether the template writes it around what the example says."""
    is_marked: bool = False
    """Whether it is what was searched for."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A message, or several where the text cannot be cut between them."""

    messages: Sequence[Message]
    runs: Sequence[Run]
    tokens: int | None = None
    learned: int = 0
    """Tokens that carry loss."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token; several, if they make one character together."""

    text: str
    count: int
    is_learned: bool
    is_control: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """One text that the model is trained on."""

    title: str | None
    """What sets it apart from the example's other one; None if it has no special place."""
    turns: Sequence[Turn]
    tokens: int | None
    """None where no base model's tokens are known."""
    learned: int
    more_characters: int = 0
    """How much of the text is left out."""
    spelled: SpelledExample | None = field(default=None, repr=False)


def read_as_learned(
    template: ChatTemplate, example: Example, *, words: str = "", most_characters: int
) -> list[Reading]:
    """Return the texts that the example is trained as: mostly one, for a preference pair two.

    Raises:
        ExampleError: the template cannot express the example.
    """
    if isinstance(example, PreferenceExample):
        titles = "Preferred answer", "Answer that is not preferred"
        answers = [(chat, template.spell_answer(chat)) for chat in example.chats()]
        return [
            _reading(template, chat, spelled, title, words, most_characters)
            for title, (chat, spelled) in zip(titles, answers, strict=True)
        ]
    return [
        _reading(template, example, spelled, None, words, most_characters)
        for spelled in template.spell(example)
    ]


def read_plainly(example: Example, *, words: str = "", most_characters: int) -> list[Reading]:
    """Return the example's texts without a base model: turns are learned or not, tokens are unknown."""
    if isinstance(example, CompletionExample):
        prompt, completion = Message("user", example.prompt), Message("assistant", example.completion)
        return [_plain(None, [prompt, completion], words, most_characters)]
    if isinstance(example, ChatExample):
        return [_plain(None, example.messages, words, most_characters)]
    titles = "Preferred answer", "Answer that is not preferred"
    return [
        _plain(title, chat.messages, words, most_characters)
        for title, chat in zip(titles, example.chats(), strict=True)
    ]


def list_tokens(template: ChatTemplate, spelled: SpelledExample, most: int) -> list[Token]:
    """Return the first tokens of a text, with what is between them."""
    tokens: list[Token] = []
    end = 0
    for place, (token_id, (_, stop)) in enumerate(
        zip(spelled.tokens.input_ids[:most], spelled.offsets, strict=False)
    ):
        is_learned = _is_learned(spelled, place)
        if stop <= end and tokens:  # another token of the same character
            last = tokens[-1]
            tokens[-1] = Token(last.text, last.count + 1, last.is_learned or is_learned, last.is_control)
            continue
        tokens.append(Token(spelled.text[end:stop], 1, is_learned, token_id in template.special_ids))
        end = stop
    return tokens


def _is_learned(spelled: SpelledExample, place: int) -> bool:
    """Whether a token carries loss; the first never does, as nothing predicts it."""
    return place > 0 and spelled.tokens.target_mask[place]


def _reading(
    template: ChatTemplate,
    example: ChatExample | CompletionExample,
    spelled: SpelledExample,
    title: str | None,
    words: str,
    most_characters: int,
) -> Reading:
    text, ids = spelled.text, spelled.tokens.input_ids
    learned: list[Span] = []
    control: list[Span] = []
    end = 0
    for place, (_, stop) in enumerate(spelled.offsets):
        if stop <= end:
            continue
        if _is_learned(spelled, place):
            _extend(learned, (end, stop))
        if ids[place] in template.special_ids:
            control.append((spelled.offsets[place][0], stop))
        end = stop
    marked = places_of(text, words)
    starts = [first for first, _ in spelled.offsets]
    turns: list[Turn] = []
    for begin, stop, messages in _turns(template, example, text):
        if begin >= most_characters:
            break
        said = (
            [(begin, stop)]
            if isinstance(example, CompletionExample)
            else _find_texts(text, (begin, stop), messages, control)
        )
        runs = _runs(text, (begin, min(stop, most_characters)), learned, control, said, marked)
        inside = range(bisect_left(starts, begin), bisect_left(starts, stop))
        count = sum(_is_learned(spelled, place) for place in inside)
        turns.append(Turn(messages, runs, len(inside), count))
    total = sum(_is_learned(spelled, place) for place in range(len(ids)))
    return Reading(title, turns, len(ids), total, max(0, len(text) - most_characters), spelled)


def _turns(
    template: ChatTemplate, example: ChatExample | CompletionExample, text: str
) -> Iterator[tuple[int, int, Sequence[Message]]]:
    """Yield the places in the text where each turn begins and ends, with its messages."""
    if isinstance(example, CompletionExample):
        middle = len(example.prompt)
        yield 0, middle, [Message("user", example.prompt)]
        yield middle, len(text), [Message("assistant", example.completion)]
        return
    begin = first = 0
    for count in range(1, len(example.messages) + 1) if len(example.messages) <= _MOST_TURNS else ():
        try:
            part = template.render(example, turns=count)
        except ExampleError:  # the template wants another turn after this one
            continue
        if part.startswith(text):
            yield begin, len(text), example.messages[first:count]
            return
        if text.startswith(part) and len(part) > begin:
            yield begin, len(part), example.messages[first:count]
            begin, first = len(part), count
    yield begin, len(text), example.messages[first:]


def _find_texts(text: str, turn: Span, messages: Sequence[Message], control: list[Span]) -> list[Span]:
    """Return where a turn has its message's own words; all of it where that is not clear."""
    begin, stop = turn
    if len(messages) != 1:
        return [turn]
    inside = text[begin:stop]
    for first, last in control:
        if begin <= first and last <= stop:
            inside = inside[: first - begin] + "\0" * (last - first) + inside[last - begin :]
    found: list[Span] = []
    for said in (messages[0].thoughts, messages[0].text):
        wanted = (said or "").strip()
        place = inside.rfind(wanted) if wanted else -1
        if place >= 0:
            found.append((begin + place, begin + place + len(wanted)))
    return sorted(found)


def _plain(title: str | None, messages: Sequence[Message], words: str, most_characters: int) -> Reading:
    turns: list[Turn] = []
    left = most_characters
    for message in messages:
        text = "\n\n".join(part for part in (message.thoughts, message.text) if part)
        whole = (0, min(len(text), max(0, left)))
        learned: list[Span] = [whole] if message.is_target else []
        turns.append(Turn([message], _runs(text, whole, learned, [], [whole], places_of(text, words))))
        left -= len(text)
    return Reading(title, turns, None, 0, max(0, -left))


def _runs(
    text: str, part: Span, learned: list[Span], control: list[Span], said: list[Span], marked: list[Span]
) -> list[Run]:
    begin, stop = part
    places = {place for spans in (learned, control, said, marked) for span in spans for place in span}
    cuts = sorted({begin, stop, *(place for place in places if begin < place < stop)})
    return [
        Run(
            text[first:last],
            is_learned=_covers(learned, first),
            is_control=_covers(control, first),
            is_template=not _covers(said, first),
            is_marked=_covers(marked, first),
        )
        for first, last in pairwise(cuts)
    ]


def _covers(spans: list[Span], place: int) -> bool:
    """Whether one of the spans, which are in order and do not overlap, has the place in it."""
    at = bisect_right(spans, place, key=lambda span: span[0]) - 1
    return at >= 0 and place < spans[at][1]


def _extend(spans: list[Span], more: Span) -> None:
    if spans and spans[-1][1] == more[0]:
        spans[-1] = spans[-1][0], more[1]
    else:
        spans.append(more)
