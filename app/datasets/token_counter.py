"""Counts the tokens of many examples at once, with the results of `ChatTemplate.tokenize` but faster.

It takes two shortcuts: `fastokens` instead of `tokenizers`, and template segments instead of Jinja (see
`app.datasets.template_segments`), with which turns are tokenized separately where each begins with a control
token. Both are verified against the template when the counter is loaded, and not used where they differ.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from app.datasets.chat_template import ChatTemplate, TemplateOptions, TokenizedExample
from app.datasets.template_segments import (
    SAMPLE_TEXTS,
    RenderedTurn,
    TemplateSegments,
    sample_chats,
)
from app.datasets.types import ChatExample, CompletionExample, Example, ExampleError, PreferenceExample


class EncodedTexts(NamedTuple):
    """The token ids of several texts."""

    ids: array[int]
    offsets: array[int]
    """The place in `ids` where each text begins, and where the last one ends."""

    def of(self, number: int) -> array[int]:
        """Returns the token ids of one text."""
        return self.ids[self.offsets[number] : self.offsets[number + 1]]


EncodeTexts = Callable[[list[str]], EncodedTexts]


class TokenCounts(NamedTuple):
    """The tokens of one example, in all the sequences that it is trained as."""

    tokens: int
    targets: int
    longest: int
    """Tokens in its longest sequence."""

    @classmethod
    def of(cls, sequences: Sequence[TokenizedExample]) -> TokenCounts:
        """Counts the tokens of an example's sequences."""
        sizes = [len(sequence.input_ids) for sequence in sequences]
        # The first token is never predicted, so it is not a target.
        return cls(sum(sizes), sum(sum(sequence.target_mask[1:]) for sequence in sequences), max(sizes))


class Shortcuts(NamedTuple):
    """The shortcuts that are verified for one base model; they can be sent to other processes."""

    fast_tokenizer: bool
    segments: TemplateSegments | None
    """Segments of the chat template; None where every example must be rendered."""
    special_texts: tuple[str, ...]

    @classmethod
    def verify(cls, base_model_dir: Path, options: TemplateOptions | None = None) -> Shortcuts:
        """Verifies each shortcut against the base model's own template and tokenizer.

        Raises:
            FileNotFoundError: the folder has no tokenizer or no chat template.
        """
        template = ChatTemplate.load(base_model_dir, options)
        fast = _fast_encode(base_model_dir, template)
        segments = TemplateSegments.infer(template)
        if segments is not None and not TurnCounter.agrees(
            template, segments, fast or _slow_encode(template)
        ):
            segments = None
        return cls(fast is not None, segments, tuple(template.special_texts))


class TokenCounter:
    """Counts tokens for one base model."""

    def __init__(
        self, base_model_dir: Path, shortcuts: Shortcuts, options: TemplateOptions | None = None
    ) -> None:
        self._folder = base_model_dir
        self._options = options
        self._fast_encode = _fast_encode(base_model_dir) if shortcuts.fast_tokenizer else None
        self._turns = (
            TurnCounter(shortcuts.segments, self._encode) if shortcuts.segments is not None else None
        )
        special = sorted(shortcuts.special_texts, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None
        self._first_signs = {text[0] for text in special}
        _release_memory()

    @classmethod
    def load(cls, base_model_dir: Path, options: TemplateOptions | None = None) -> TokenCounter:
        """Loads the counter of a prepared base model, with the shortcuts that are verified for it.

        Raises:
            FileNotFoundError: the folder has no tokenizer or no chat template.
        """
        return cls(base_model_dir, Shortcuts.verify(base_model_dir, options), options)

    @cached_property
    def _template(self) -> ChatTemplate:
        """Returns the template, loaded on first use: most files never need it."""
        return ChatTemplate.load(self._folder, self._options)

    @property
    def counts_by_turn(self) -> bool:
        """Returns whether turns are counted separately, without rendering the conversation."""
        return self._turns is not None

    def count(self, examples: Sequence[Example]) -> list[TokenCounts | ExampleError]:
        """Returns the tokens of each example, or the error of one that the template cannot express."""
        chats: list[ChatExample] = []
        owners: list[int] = []
        counted: list[TokenCounts | ExampleError] = [TokenCounts(0, 0, 0)] * len(examples)
        for number, example in enumerate(examples):
            if isinstance(example, CompletionExample):
                counted[number] = self._count_one(example)
                continue
            for chat in example.chats() if isinstance(example, PreferenceExample) else (example,):
                chats.append(chat)
                owners.append(number)
        by_turn = self._turns.count(chats) if self._turns is not None else [None] * len(chats)
        for owner, chat, known in zip(owners, chats, by_turn, strict=True):
            is_answer = isinstance(examples[owner], PreferenceExample)
            # `ChatTemplate.tokenize_answer` refuses an answer that needs several sequences.
            is_refused = is_answer and known is not None and known.tokens > known.longest
            one = self._count_one(chat, is_answer=is_answer) if known is None or is_refused else known
            before = counted[owner]
            if isinstance(before, ExampleError):
                continue
            counted[owner] = (
                one
                if isinstance(one, ExampleError)
                else TokenCounts(
                    before.tokens + one.tokens,
                    before.targets + one.targets,
                    max(before.longest, one.longest),
                )
            )
        return counted

    def special_tokens_in(self, example: Example) -> Iterator[tuple[str, str]]:
        """Yields the first of the base model's control tokens in each text, with the text's pointer."""
        if self._special is None:
            return
        for pointer, text in _texts(example):
            if any(sign in text for sign in self._first_signs) and (found := self._special.search(text)):
                yield pointer, found[0]

    def _encode(self, texts: list[str]) -> EncodedTexts:
        if self._fast_encode is not None:
            try:
                return self._fast_encode(texts)
            except ValueError:  # bytes that are not in the vocabulary; the base's own tokenizer drops them
                pass
        return _slow_encode(self._template)(texts)

    def _count_one(
        self, example: ChatExample | CompletionExample, *, is_answer: bool = False
    ) -> TokenCounts | ExampleError:
        try:
            if is_answer and isinstance(example, ChatExample):
                return TokenCounts.of([self._template.tokenize_answer(example)])
            return TokenCounts.of(self._template.tokenize(example))
        except ExampleError as error:
            return error


class TurnCounter:
    """Counts tokens turn by turn, for a template whose turns begin with a control token."""

    def __init__(self, segments: TemplateSegments, encode: EncodeTexts) -> None:
        self._segments = segments
        self._encode = encode
        turns = list(segments.turns.values())
        prompts = encode([turn.prompt for turn in turns])
        closings = encode([turn.closing for turn in turns])
        ends = encode([turn.closing.rstrip() for turn in turns])
        self._prompts = {
            # White space at the end of a closing is not a target.
            turn: (prompts.of(number), len(closings.of(number)) - len(ends.of(number)))
            for number, turn in enumerate(turns)
        }
        """The generation prompt, and the number of tokens at the end that are no targets."""

    @classmethod
    def agrees(cls, template: ChatTemplate, segments: TemplateSegments, encode: EncodeTexts) -> bool:
        """Returns whether turns begin with a control token, and all counts of samples are right.

        One answer at least must be counted. Where none is, prompts end amid the first token of their answers,
        and every example would be rendered anyway.
        """
        special = tuple(template.special_texts)
        openings = [text for turn in segments.turns.values() for text in (turn.opening, turn.last_opening)]
        if not special or not all(opening.startswith(special) for opening in openings):
            return False
        chats = list(sample_chats())
        counts = [
            (chat, count)
            for chat, count in zip(chats, cls(segments, encode).count(chats), strict=True)
            if count
        ]
        try:
            return any(count.targets for _, count in counts) and all(
                count == TokenCounts.of(template.tokenize(chat)) for chat, count in counts
            )
        except ExampleError:
            return False

    def count(self, chats: Sequence[ChatExample]) -> list[TokenCounts | None]:
        """Returns the tokens of each conversation, or None for one that must be rendered."""
        rendered = [self._segments.render_turns(chat) for chat in chats]
        texts: list[str] = []
        for turn in itertools.chain.from_iterable(turns for turns in rendered if turns is not None):
            texts.append(turn.text)
            if turn.learnt is not None and turn.learnt != turn.text:
                texts.append(turn.learnt)
        encoded = self._encode(texts)
        spans = itertools.pairwise(encoded.offsets)
        return [None if turns is None else self._count_turns(turns, encoded.ids, spans) for turns in rendered]

    def _count_turns(
        self, turns: list[RenderedTurn], ids: array[int], spans: Iterator[tuple[int, int]]
    ) -> TokenCounts | None:
        """Counts a conversation's sequences, given the span of each turn's text and of its other as learnt.

        A sequence goes on until a turn that is learnt as a text other than the one that later turns follow.
        Returns None where the first token of an answer begins in its prompt.
        """
        before = tokens = targets = longest = 0
        is_complete, is_merged = False, False
        for turn in turns:
            start, end = next(spans)
            size = end - start
            if turn.learnt is not None:
                is_complete = turn.learnt != turn.text
                if is_complete:
                    start, end = next(spans)
                    tokens += before + end - start
                    longest = max(longest, before + end - start)
                prompt, trailing = self._prompts[turn.segments]
                is_merged |= ids[start : start + len(prompt)] != prompt
                targets += end - start - len(prompt) - trailing
            before += size
        if is_merged:
            return None
        if is_complete:
            return TokenCounts(tokens, targets, longest)
        return TokenCounts(tokens + before, targets, max(longest, before))


def _fast_encode(base_model_dir: Path, template: ChatTemplate | None = None) -> EncodeTexts | None:
    """Returns an encoder of `fastokens`; None if it cannot load the tokenizer or differs on a sample."""
    # One thread is enough, since several processes read a file; each further thread takes 34 MB.
    os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
    import fastokens  # pyright: ignore[reportMissingTypeStubs]  # noqa: PLC0415 - large, and used only here

    try:
        tokenizer = fastokens.Tokenizer.from_file(str(base_model_dir / "tokenizer.json"))
        if template is not None and any(
            tokenizer.encode(text).ids != template.encode(text) for text in SAMPLE_TEXTS
        ):
            return None
    except Exception:  # whatever went wrong, the base model's own tokenizer works
        return None

    def encode(texts: list[str]) -> EncodedTexts:
        ids, offsets = tokenizer.encode_batch_flat(texts)
        return EncodedTexts(array("I", ids), array("Q", offsets))

    return encode


def _slow_encode(template: ChatTemplate) -> EncodeTexts:
    def encode(texts: list[str]) -> EncodedTexts:
        each = template.encode_batch(texts)
        offsets = itertools.accumulate(map(len, each), initial=0)
        return EncodedTexts(array("I", itertools.chain.from_iterable(each)), array("Q", offsets))

    return encode


def _release_memory() -> None:
    """Returns to the system what loading the tokenizer took and the allocator keeps: 20 MB and more."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc
        libc.malloc_trim(0)


def _texts(example: Example) -> Iterator[tuple[str, str]]:
    if isinstance(example, CompletionExample):
        yield "/prompt", example.prompt
        yield "/completion", example.completion
        return
    parts = (
        [("/messages", example.messages)]
        if isinstance(example, ChatExample)
        else [
            ("/input/messages", example.input.messages),
            ("/preferred_output", example.preferred_output),
            ("/non_preferred_output", example.non_preferred_output),
        ]
    )
    for place, messages in parts:
        for index, message in enumerate(messages):
            yield f"{place}/{index}/content", message.text
            if message.thoughts:
                name = "reasoning" if message.reasoning is not None else "reasoning_content"
                yield f"{place}/{index}/{name}", message.thoughts
            for number, call in enumerate(message.tool_calls or ()):
                yield f"{place}/{index}/tool_calls/{number}/function/arguments", call.function.arguments
