"""A base model's chat template and tokenizer, which training, serving and token counts share.

It renders as transformers' `apply_chat_template` does (same Jinja environment and variables), without
importing transformers. See https://huggingface.co/docs/transformers/chat_templating
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from app.datasets.types import ChatExample, CompletionExample, ExampleError, Message


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """Token ids and, for each of them, whether the loss is computed on it."""

    input_ids: list[int]
    target_mask: list[bool]


class ChatTemplate:
    """The chat template and the tokenizer of one base model."""

    def __init__(self, source: str, tokenizer: Tokenizer, special_tokens: dict[str, str]) -> None:
        self._source = source
        self._template = _compile(source)
        self._tokenizer = tokenizer
        self._special_tokens = special_tokens

    @property
    def special_texts(self) -> list[str]:
        """Returns the tokenizer's control tokens as text."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        return [token.content for token in added if token.special]

    @classmethod
    def load(cls, base_model_dir: Path) -> ChatTemplate:
        """Loads the template of a prepared base model.

        Raises:
            FileNotFoundError: the folder has no tokenizer or no chat template.
        """
        config: dict[str, Any] = json.loads((base_model_dir / "tokenizer_config.json").read_text("utf-8"))
        template_file = base_model_dir / "chat_template.jinja"
        source = template_file.read_text("utf-8") if template_file.exists() else config.get("chat_template")
        if not isinstance(source, str):
            raise FileNotFoundError(f"{base_model_dir} has no chat template: it is not an instruct model")
        tokenizer = Tokenizer.from_file(str(base_model_dir / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        special = {
            name: _token_text(config.get(name))
            for name in ("bos_token", "eos_token", "pad_token", "unk_token")
        }
        return cls(source, tokenizer, {name: text for name, text in special.items() if text})

    def render(self, chat: ChatExample, *, turns: int | None = None, generation_prompt: bool = False) -> str:
        """Renders the conversation, or its first `turns` messages, as the text that the model reads.

        Raises:
            ExampleError: the template refuses the conversation.
        """
        try:
            return self._template.render(
                messages=[_template_message(message) for message in chat.messages[:turns]],
                tools=chat.tools,
                documents=None,
                add_generation_prompt=generation_prompt,
                **self._special_tokens,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise ExampleError(
                "template_refused", f"does not fit the base model's chat template: {error}"
            ) from None

    def tokenize(self, example: ChatExample | CompletionExample) -> TokenizedExample:
        """Tokenizes the example; the targets are the assistant's words and the token that ends its turn.

        Raises:
            ExampleError: the template cannot express the example.
        """
        if isinstance(example, CompletionExample):
            return self._tokenize_completion(example)
        text, spans = self.render_with_targets(example)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        mask = [
            any(start < end <= stop and end > begin for begin, stop in spans)
            for start, end in encoding.offsets
        ]
        return TokenizedExample(encoding.ids, mask)

    def render_with_targets(
        self, example: ChatExample | CompletionExample
    ) -> tuple[str, list[tuple[int, int]]]:
        """Returns the text that the model reads, and the targets in it as spans of characters.

        Raises:
            ExampleError: the template cannot express the example.
        """
        if isinstance(example, CompletionExample):
            text = example.prompt + example.completion + self._special_tokens.get("eos_token", "")
            return text, [(len(example.prompt), len(text))]
        self._check_tools(example)
        text = self.render(example)
        spans = [
            self._target_span(example, turn, text)
            for turn, message in enumerate(example.messages)
            if message.is_target
        ]
        return text, spans

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text; control tokens in it are recognised, and none are added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Returns the number of tokens in each text."""
        return [len(one) for one in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _target_span(self, chat: ChatExample, turn: int, text: str) -> tuple[int, int]:
        """Returns the span of `text` that the model must write in this turn, without trailing white space."""
        before = self.render(chat, turns=turn, generation_prompt=True)
        through = self.render(chat, turns=turn + 1)
        if not through.startswith(before) or not text.startswith(through.rstrip()):
            raise ExampleError(
                "template_not_incremental",
                "cannot be masked: the base model's chat template rewrites earlier turns; "
                "split the conversation so that each line ends with the turn to learn",
                f"/messages/{turn}",
            )
        return len(before), len(through.rstrip())

    def _tokenize_completion(self, example: CompletionExample) -> TokenizedExample:
        end = self._special_tokens.get("eos_token", "")
        prompt = self._tokenizer.encode(example.prompt, add_special_tokens=False).ids
        completion = self._tokenizer.encode(example.completion + end, add_special_tokens=False).ids
        return TokenizedExample(prompt + completion, [False] * len(prompt) + [True] * len(completion))

    def _check_tools(self, chat: ChatExample) -> None:
        uses_tools = chat.tools or any(m.tool_calls or m.role == "tool" for m in chat.messages)
        if uses_tools and "tool" not in self._source:
            raise ExampleError(
                "tools_not_supported",
                "uses tools, which the base model's chat template leaves out; choose a base that has them",
            )


def _template_message(message: Message) -> dict[str, Any]:
    rendered: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.name is not None:
        rendered["name"] = message.name
    if message.tool_call_id is not None:
        rendered["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        # Templates expect the arguments as an object, which vLLM passes; OpenAI's format has a JSON string.
        rendered["tool_calls"] = [
            {
                "id": call.id,
                "type": call.type,
                "function": {"name": call.function.name, "arguments": json.loads(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return rendered


def _compile(source: str) -> Template:
    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    def strftime_now(pattern: str) -> str:
        return datetime.now().strftime(pattern)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = tojson
    return environment.from_string(
        source, globals={"raise_exception": raise_exception, "strftime_now": strftime_now}
    )


def _token_text(token: Any) -> str:
    """Returns a special token's text; older configurations wrap it in an object."""
    if isinstance(token, dict):
        return str(token.get("content", ""))  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
    return token if isinstance(token, str) else ""
