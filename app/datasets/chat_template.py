"""A base model's chat template and tokenizer, which training, serving and token counts share.

Each assistant turn is learnt in the form in which it is asked for: the tokens that the engine makes of the
conversation before it, with the generation prompt, and then those of the answer as the template writes it
when it is the last turn. Many templates write an answer differently once other turns follow (they leave its
thoughts out, or end it with another token), so that one conversation may become several sequences.

It renders as transformers' `apply_chat_template` does, without importing transformers.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import TemplateError
from tokenizers import Encoding, Tokenizer

from app.datasets.jinja_template import (
    ContentFormat,
    compile_template,
    detect_content_format,
    template_messages,
    template_tools,
)
from app.datasets.types import ChatExample, CompletionExample, ExampleError, Message

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LONGEST_CACHED = 256
"""Characters. Prompts mostly end with the same few after their last control token."""


class TemplateOptions(msgspec.Struct, frozen=True):
    """What a catalogue entry changes in its base model's chat template."""

    chat_template: str | None = None
    """The template's Jinja source; None for the base model's own."""
    chat_template_kwargs: dict[str, Any] = {}
    """Variables for the template, such as `{"enable_thinking": false}`."""

    def __hash__(self) -> int:
        return hash(msgspec.json.encode(self, order="deterministic"))


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """Token ids and, for each of them, whether the loss is computed on it."""

    input_ids: list[int]
    target_mask: list[bool]


@dataclass(frozen=True, slots=True)
class SpelledExample:
    """A tokenized example with its text, as people read it."""

    text: str
    offsets: list[tuple[int, int]]
    """The places in the text where each token begins and ends."""
    tokens: TokenizedExample


@dataclass(slots=True)
class _Sequence:
    """A text as tokens, and the answers in it that are learnt."""

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]
    """The places in the text where each token begins and ends."""
    spans: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """The answers in the text, from the last to the first."""
    token_spans: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """The same as positions in `ids`."""

    @classmethod
    def of(cls, text: str, encoding: Encoding) -> _Sequence:
        return cls(text, encoding.ids, encoding.offsets)

    def append_answer(self, text: str, encoding: Encoding) -> None:
        """Appends the text as an answer, tokenized apart from what is before it."""
        before, tokens = len(self.text), len(self.ids)
        self.text += text
        self.ids = self.ids + encoding.ids
        self.offsets += [(before + start, before + end) for start, end in encoding.offsets]
        self.add_answer((before, len(self.text)), (tokens, len(self.ids)))

    def add_answer(self, span: tuple[int, int], token_span: tuple[int, int]) -> None:
        """Declares a part of the text as an answer."""
        self.spans.append(span)
        self.token_spans.append(token_span)

    def tokenized(self) -> TokenizedExample:
        """Returns the tokens, with a mask of the answers."""
        mask = [False] * len(self.ids)
        for begin, stop in self.token_spans:
            mask[begin:stop] = [True] * (stop - begin)
        return TokenizedExample(self.ids, mask)

    def spelled(self) -> SpelledExample:
        """Returns the tokens with the text that they are made of."""
        return SpelledExample(self.text, self.offsets, self.tokenized())


class ChatTemplate:
    """The chat template and the tokenizer of one base model."""

    def __init__(
        self,
        source: str,
        tokenizer: Tokenizer,
        special_tokens: dict[str, str],
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self._source = source
        self._template = compile_template(source)
        self._tokenizer = tokenizer
        self._special_tokens = special_tokens
        self._variables = special_tokens | (chat_template_kwargs or {})
        self.content_format: ContentFormat = detect_content_format(self._template)
        added = tokenizer.get_added_tokens_decoder()
        self.special_texts = [token.content for token in added.values() if token.special]
        """The tokenizer's control tokens as text."""
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        # What is before such a token never changes how the text after it is tokenized.
        self._dividers = frozenset(number for number, token in added.items() if not token.normalized)
        self._encode_again = lru_cache(maxsize=1024)(self.encode)

    @classmethod
    def load(cls, base_model_dir: Path, options: TemplateOptions | None = None) -> ChatTemplate:
        """Loads the template of a prepared base model.

        Raises:
            FileNotFoundError: the folder has no tokenizer or no chat template.
            TemplateError: the template is not valid Jinja.
        """
        options = options or TemplateOptions()
        source = read_source(base_model_dir, options)
        if source is None:
            raise FileNotFoundError(f"{base_model_dir} has no chat template: it is not an instruct model")
        tokenizer = Tokenizer.from_file(str(base_model_dir / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        config = _tokenizer_config(base_model_dir)
        special = {name: _token_text(config.get(name)) for name in _SPECIAL_TOKENS}
        special = {name: text for name, text in special.items() if text}
        return cls(source, tokenizer, special, options.chat_template_kwargs)

    def render(self, chat: ChatExample, *, turns: int | None = None, generation_prompt: bool = False) -> str:
        """Renders the conversation, or its first `turns` messages, as the text that the model reads.

        Raises:
            ExampleError: the template refuses the conversation.
        """
        try:
            return self._template.render(
                {
                    **self._variables,
                    "messages": template_messages(
                        chat.messages[:turns],
                        self._source,
                        self.content_format,
                        ends_with_answer=not generation_prompt,
                    ),
                    "tools": template_tools(chat.tools),
                    "documents": None,
                    "add_generation_prompt": generation_prompt,
                }
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise ExampleError(
                "template_refused", f"does not fit the base model's chat template: {error}"
            ) from None

    def tokenize(self, example: ChatExample | CompletionExample) -> tuple[TokenizedExample, ...]:
        """Tokenizes the example; the targets are the assistant's words and the token that ends its turn.

        Turns share a sequence as long as their tokens are the same in it as when the engine is asked for each
        of them. Every target is in one sequence.

        Raises:
            ExampleError: the template cannot express the example.
        """
        return tuple(sequence.tokenized() for sequence in self._sequences(example))

    def tokenize_answer(self, chat: ChatExample) -> TokenizedExample:
        """Tokenizes a conversation whose targets are one answer of a preference pair, as one sequence.

        Raises:
            ExampleError: the template cannot express the conversation, or not in one sequence.
        """
        return self._answer_sequence(chat).tokenized()

    def spell(self, example: ChatExample | CompletionExample) -> tuple[SpelledExample, ...]:
        """Does as `tokenize`, and returns the text, too."""
        return tuple(sequence.spelled() for sequence in self._sequences(example))

    def spell_answer(self, chat: ChatExample) -> SpelledExample:
        """Does as `tokenize_answer`, and returns the text, too."""
        return self._answer_sequence(chat).spelled()

    def render_with_targets(
        self, example: ChatExample | CompletionExample
    ) -> list[tuple[str, list[tuple[int, int]]]]:
        """Returns the text of each sequence, and the targets in it as spans of characters.

        Raises:
            ExampleError: the template cannot express the example.
        """
        return [(sequence.text, sequence.spans[::-1]) for sequence in self._sequences(example)]

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text; control tokens in it are recognised, and none are added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Returns the token ids of each text."""
        return [one.ids for one in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _answer_sequence(self, chat: ChatExample) -> _Sequence:
        sequences = self._sequences(chat)
        if len(sequences) > 1:
            raise ExampleError(
                "answer_rewritten",
                "has an answer of several assistant turns, of which the base model's chat template rewrites "
                "the earlier ones; move all but the last one into 'input'",
            )
        return sequences[0]

    def _sequences(self, example: ChatExample | CompletionExample) -> list[_Sequence]:
        if isinstance(example, CompletionExample):
            sequence = self._tokenized(example.prompt)
            answer = example.completion + self._special_tokens.get("eos_token", "")
            sequence.append_answer(answer, self._encoding(answer))
            return [sequence]
        self._check_tools(example)
        last = len(example.messages) - 1
        whole = self.render(example)
        sequences = [self._tokenized(whole)]
        for turn in range(last, -1, -1):
            if not example.messages[turn].is_target:
                continue
            prompt, through = self._turn(example, turn, whole if turn == last else None)
            if not self._add_answer(sequences[-1], len(prompt), through.rstrip()):
                sequences.append(self._ending_with(prompt, through))
        return [sequence for sequence in reversed(sequences) if sequence.spans] or sequences

    def _turn(self, chat: ChatExample, turn: int, through: str | None) -> tuple[str, str]:
        """Returns the engine's prompt for the turn, and the conversation that ends with the turn.

        Raises:
            ExampleError: the turn cannot be learnt in this form.
        """
        prompt = self.render(chat, turns=turn, generation_prompt=True)
        if through is None:
            through = self.render(chat, turns=turn + 1)
        if not through.startswith(prompt) or len(through.rstrip()) <= len(prompt):
            raise ExampleError(
                "answer_not_after_prompt",
                "cannot be learned: the base model's chat template does not write this turn after its "
                "generation prompt, so the model would never be asked for it in this form; set another "
                "'chat_template' or 'chat_template_kwargs' in the base's catalogue entry",
                f"/messages/{turn}",
            )
        for thoughts in _thoughts(chat.messages[turn]):
            if thoughts not in through[len(prompt) :]:
                raise ExampleError(
                    "reasoning_not_supported",
                    "has thoughts in an answer, which the base model's chat template leaves out; "
                    "remove them, or set another 'chat_template' or 'chat_template_kwargs' in the base's "
                    "catalogue entry",
                    f"/messages/{turn}",
                )
        return prompt, through

    def _ending_with(self, prompt: str, through: str) -> _Sequence:
        """Returns a sequence whose last answer begins after the prompt."""
        sequence = self._tokenized(through)
        answered = through.rstrip()
        if not self._add_answer(sequence, len(prompt), answered):
            # As one text, its tokens differ from the prompt's: a token of the prompt goes on in the answer.
            sequence = self._tokenized(prompt)
            sequence.append_answer(answered[len(prompt) :], self._encoding(answered[len(prompt) :]))
        return sequence

    def _add_answer(self, sequence: _Sequence, begin: int, answered: str) -> bool:
        """Adds the answer at the end of `answered` if the sequence begins with the same text and tokens.

        Returns:
            Whether the answer was added.
        """
        stop = len(answered)
        if not sequence.text.startswith(answered):
            return False
        first, after = (bisect_right(sequence.offsets, place, key=itemgetter(1)) for place in (begin, stop))
        if after < len(sequence.ids) and sequence.offsets[after][0] < stop:
            # Some control tokens take the white space after them with them; others would belong to both.
            swallowed = sequence.text[stop : sequence.offsets[after][1]]
            if sequence.ids[after] not in self._dividers or not swallowed.isspace():
                return False
            after += 1
        if first >= after or sequence.offsets[first][0] < begin:
            return False
        if not self._is_prompt(sequence, begin, first):
            return False
        sequence.add_answer((begin, stop), (first, after))
        return True

    def _is_prompt(self, sequence: _Sequence, place: int, count: int) -> bool:
        """Returns whether the first `count` tokens are those of the text before `place` alone."""
        divider = next((at for at in range(count - 1, -1, -1) if sequence.ids[at] in self._dividers), 0)
        text = sequence.text[sequence.offsets[divider][0] if divider else 0 : place]
        encode = self._encode_again if len(text) <= _LONGEST_CACHED else self.encode
        return encode(text) == sequence.ids[divider:count]

    def _tokenized(self, text: str) -> _Sequence:
        return _Sequence.of(text, self._encoding(text))

    def _encoding(self, text: str) -> Encoding:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _check_tools(self, chat: ChatExample) -> None:
        uses_tools = chat.tools or any(m.tool_calls or m.role == "tool" for m in chat.messages)
        if uses_tools and "tool" not in self._source:
            raise ExampleError(
                "tools_not_supported",
                "uses tools, which the base model's chat template leaves out; choose a base that has them",
            )


def read_source(base_model_dir: Path, options: TemplateOptions) -> str | None:
    """Returns the Jinja source of the chat template that training and serving use, or None without one."""
    if options.chat_template is not None:
        return options.chat_template
    file = base_model_dir / "chat_template.jinja"
    source = (
        file.read_text("utf-8") if file.exists() else _tokenizer_config(base_model_dir).get("chat_template")
    )
    return source if isinstance(source, str) else None


def _tokenizer_config(base_model_dir: Path) -> dict[str, Any]:
    return json.loads((base_model_dir / "tokenizer_config.json").read_text("utf-8"))


def _thoughts(message: Message) -> Iterator[str]:
    """Yields what the assistant thought: in a field of its own, or between tags before its answer."""
    if message.thoughts:
        yield message.thoughts.strip()
    before, tag, _ = message.text.partition("</think>")
    if tag:
        yield before.rpartition("<think>")[2].strip()


def _token_text(token: Any) -> str:
    """Returns a special token's text; older configurations wrap it in an object."""
    if isinstance(token, dict):
        return str(token.get("content", ""))  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
    return token if isinstance(token, str) else ""
