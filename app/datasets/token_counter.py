"""How many tokens examples come to, for many examples at once: exactly `ChatTemplate.tokenize`, faster.

Two shortcuts, each held against the long way when the counter is loaded, and left out where it differs:
`fastokens` instead of `tokenizers`, and the template taken apart into what it writes before and after a turn
(`app.datasets.template_segments`). Where every turn begins with a control token, turns are tokenized apart
from each other.
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

from app.datasets.chat_template import ChatTemplate
from app.datasets.template_segments import SAMPLE_TEXTS, TemplateSegments, TurnSegments, sample_chats
from app.datasets.types import ChatExample, CompletionExample, Example, ExampleError, PreferenceExample

Lengths = Callable[[list[str]], Sequence[int]]
"""Tokens of each text."""


class TokenCounts(NamedTuple):
    """Tokens of one example; of a preference pair, those of both conversations."""

    tokens: int
    targets: int
    longest: int
    """Tokens of its longest conversation."""


class Shortcuts(NamedTuple):
    """What was proven to hold for one base model; it can be sent to other processes."""

    fast_tokenizer: bool
    segments: TemplateSegments | None
    """None: every example is rendered."""
    special_texts: tuple[str, ...]

    @classmethod
    def verify(cls, base_model_dir: Path) -> Shortcuts:
        """Holds each against the base's own template and tokenizer.

        Raises:
            FileNotFoundError: the folder has no tokenizer or no chat template.
        """
        template = ChatTemplate.load(base_model_dir)
        fast = _fast_lengths(base_model_dir, template)
        segments = TemplateSegments.infer(template)
        if segments is not None and not TurnCounter.agrees(template, segments, fast or template.lengths):
            segments = None
        return cls(fast is not None, segments, tuple(template.special_texts))


class TokenCounter:
    """Of one base model."""

    def __init__(self, base_model_dir: Path, shortcuts: Shortcuts) -> None:
        self._folder = base_model_dir
        self._fast_lengths = _fast_lengths(base_model_dir) if shortcuts.fast_tokenizer else None
        self._turns = (
            TurnCounter(shortcuts.segments, self._lengths) if shortcuts.segments is not None else None
        )
        special = sorted(shortcuts.special_texts, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None
        self._first_signs = {text[0] for text in special}
        _give_memory_back()

    @classmethod
    def load(cls, base_model_dir: Path) -> TokenCounter:
        """The counter of a prepared base model, with the shortcuts that are proven to hold for it.

        Raises:
            FileNotFoundError: the folder has no tokenizer or no chat template.
        """
        return cls(base_model_dir, Shortcuts.verify(base_model_dir))

    @cached_property
    def _template(self) -> ChatTemplate:
        """For the long way; most files need none of it."""
        return ChatTemplate.load(self._folder)

    @property
    def counts_by_turn(self) -> bool:
        """Whether turns are counted apart from each other, without rendering."""
        return self._turns is not None

    def count(self, examples: Sequence[Example]) -> list[TokenCounts | ExampleError]:
        """Tokens of each example, or why the template cannot express it."""
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
        quick = self._turns.count(chats) if self._turns is not None else [None] * len(chats)
        for owner, chat, known in zip(owners, chats, quick, strict=True):
            one = known or self._count_one(chat)
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
        """The base's control tokens in the example's texts: the first of each text, with its pointer."""
        if self._special is None:
            return
        for pointer, text in _texts(example):
            if any(sign in text for sign in self._first_signs) and (found := self._special.search(text)):
                yield pointer, found[0]

    def _lengths(self, texts: list[str]) -> Sequence[int]:
        if self._fast_lengths is not None:
            try:
                return self._fast_lengths(texts)
            except ValueError:  # a character whose bytes the vocabulary lacks; the base's own leaves them out
                pass
        return self._template.lengths(texts)

    def _count_one(self, example: ChatExample | CompletionExample) -> TokenCounts | ExampleError:
        try:
            tokenized = self._template.tokenize(example)
        except ExampleError as error:
            return error
        # The first token is never predicted, so it is no target.
        tokens = len(tokenized.input_ids)
        return TokenCounts(tokens, sum(tokenized.target_mask[1:]), tokens)


class TurnCounter:
    """Counts turn by turn, for a template whose turns begin with a control token."""

    def __init__(self, segments: TemplateSegments, lengths: Lengths) -> None:
        self._pieces = segments
        self._lengths = lengths
        # White space at an opening's end is cut into tokens by whether something follows it.
        around = [text for turn in segments.turns.values() for text in (f"{turn.opening}x", "x", turn.tail)]
        sizes = lengths(around)
        self._overhead = {
            turn: head - one + tail
            for turn, head, one, tail in zip(
                segments.turns.values(), sizes[::3], sizes[1::3], sizes[2::3], strict=True
            )
        }

    @classmethod
    def agrees(cls, template: ChatTemplate, segments: TemplateSegments, lengths: Lengths) -> bool:
        """Whether turns begin with a control token, and every sample comes to the template's own numbers."""
        special = tuple(template.special_texts)
        if not special or not all(turn.opening.startswith(special) for turn in segments.turns.values()):
            return False
        chats = list(sample_chats())
        for chat, counted in zip(chats, cls(segments, lengths).count(chats), strict=True):
            if counted is None:
                continue
            try:
                expected = template.tokenize(chat)
            except ExampleError:
                return False
            own = (len(expected.input_ids), sum(expected.target_mask[1:]))
            if (counted.tokens, counted.targets) != own:
                return False
        return True

    def count(self, chats: Sequence[ChatExample]) -> list[TokenCounts | None]:
        """Tokens of each conversation; None for one that is to be counted the long way."""
        texts: list[str] = []
        turns: list[list[tuple[TurnSegments, bool]] | None] = []
        for chat in chats:
            known = self._pieces.render_turns(chat, texts)
            turns.append(known)
        sizes = iter(self._lengths(texts))
        counted: list[TokenCounts | None] = []
        for parts in turns:
            if parts is None:
                counted.append(None)
                continue
            tokens = targets = 0
            for (turn, is_target), size in zip(parts, sizes, strict=False):
                tokens += size
                if is_target:
                    targets += size - self._overhead[turn]
            counted.append(TokenCounts(tokens, targets, tokens))
        return counted


def _fast_lengths(base_model_dir: Path, template: ChatTemplate | None = None) -> Lengths | None:
    """By `fastokens`; None where it does not know the tokenizer, or a sample comes to other tokens."""
    # Files are read by several processes, so a tokenizer has one thread; each more takes 34 MB.
    os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
    import fastokens  # pyright: ignore[reportMissingTypeStubs]  # noqa: PLC0415 - large, for this alone

    try:
        tokenizer = fastokens.Tokenizer.from_file(str(base_model_dir / "tokenizer.json"))
        if template is not None and any(
            tokenizer.encode(text).ids != template.encode(text) for text in SAMPLE_TEXTS
        ):
            return None
    except Exception:  # whatever it dislikes, the base's own tokenizer is there
        return None

    def lengths(texts: list[str]) -> Sequence[int]:
        _, raw = tokenizer.encode_batch_flat(texts)
        offsets = array("Q")
        offsets.frombytes(raw)
        return [end - start for start, end in itertools.pairwise(offsets)]

    return lengths


def _give_memory_back() -> None:
    """What reading the tokenizer took and the allocator keeps: 20 MB and more in each process."""
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
