"""Chat templates of the kinds that base models come with, and tokenizers of the kinds that go with them.

They are written for the tests: each has the shape of its kind (what surrounds a turn, what is folded, left
out or written differently in the last turn), and words of its own.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from app.core.chat_templates import read_chat_template

CHATML = """
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""

HEADERS = """
{{- bos_token }}
{%- if tools %}
{{- '<|header|>system<|/header|>\\n\\nFunctions you may call:\\n' }}
{%- for tool in tools %}{{- tool.function | tojson(indent=2) + '\\n' }}{% endfor %}
{{- '<|turn_end|>' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|header|>results<|/header|>\\n\\n' + message.content | tojson + '<|turn_end|>' }}
{%- elif message.tool_calls %}
{{- '<|header|>assistant<|/header|>\\n\\n' }}
{%- for call in message.tool_calls %}
{{- {'name': call.function.name, 'parameters': call.function.arguments} | tojson }}
{%- endfor %}
{{- '<|turn_end|>' }}
{%- else %}
{{- '<|header|>' + message.role + '<|/header|>\\n\\n' + message.content | trim + '<|turn_end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|header|>assistant<|/header|>\\n\\n' }}{% endif %}
"""

FOLDED_SYSTEM = """
{{- bos_token }}
{%- set first = namespace(text='') %}
{%- if messages[0].role == 'system' %}
{%- if messages[0].content is string %}{% set first.text = messages[0].content + '\\n\\n' %}
{%- else %}{% set first.text = messages[0].content[0].text + '\\n\\n' %}{% endif %}
{%- set turns = messages[1:] %}
{%- else %}
{%- set turns = messages %}
{%- endif %}
{%- for message in turns %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('user and assistant take turns') }}
{%- endif %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
{%- if loop.first %}{{- first.text }}{% endif %}
{%- if message.content is string %}{{- message.content | trim }}
{%- else %}{% for part in message.content %}{{- part.text | trim }}{% endfor %}{% endif %}
{{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{% endif %}
"""

INSTRUCTIONS = """
{{- bos_token }}
{%- if messages[0].role == 'system' %}
{%- set system = messages[0].content + '\\n\\n' %}{% set turns = messages[1:] %}
{%- else %}
{%- set system = '' %}{% set turns = messages %}
{%- endif %}
{%- set at = namespace(question=-1) %}
{%- for message in turns if message.role == 'user' %}{% set at.question = message %}{% endfor %}
{%- for message in turns %}
{%- if message.role == 'user' %}
{%- if tools and message is sameas at.question %}{{- '[TOOLS]' + tools | tojson + '[/TOOLS]' }}{% endif %}
{{- '[INST] ' + (system if loop.first else '') + message.content + ' [/INST]' }}
{%- elif message.role == 'tool' %}
{{- '[RESULT] ' + message.content + ' [/RESULT]' }}
{%- elif message.tool_calls %}
{{- ' [CALLS] ' }}
{%- for call in message.tool_calls %}{{- call.function | tojson }}{% endfor %}
{{- eos_token }}
{%- elif message.role == 'assistant' %}
{{- ' ' + message.content + eos_token }}
{%- else %}
{{- raise_exception('only a first message may be the system') }}
{%- endif %}
{%- endfor %}
"""

ROLE_TAGS = """
{%- for message in messages %}
{{- '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{% endif %}
"""

THINKING = """
{%- if tools or messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content }}{% endif %}
{%- if tools %}
{{- '\\n\\nTools, one a line:\\n' }}
{%- for tool in tools %}{{- tool | tojson + '\\n' }}{% endfor %}
{{- 'Answer <tool_call>{"name": ..., "arguments": ...}</tool_call> to call one.' }}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- set at = namespace(question=-1) %}
{%- for message in messages %}
{%- if message.role == 'user' %}{% set at.question = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{%- set answer = message.content %}
{%- set thoughts = message.reasoning_content or '' %}
{%- if not thoughts and '</think>' in answer %}
{%- set thoughts = answer.split('</think>')[0].split('<think>')[-1] %}
{%- set answer = answer.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > at.question and (loop.last or thoughts) %}
{{- '<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' }}
{%- set answer = answer.lstrip('\\n') %}
{%- endif %}
{{- answer }}
{%- for call in message.tool_calls or [] %}
{%- if answer or not loop.first %}{{- '\\n' }}{% endif %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson + '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\\n' }}{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""

CHANNELS = """
{%- if messages[0].role in ('system', 'developer') %}
{%- set rules = messages[0].content %}{% set turns = messages[1:] %}
{%- else %}
{%- set rules = '' %}{% set turns = messages %}
{%- endif %}
{{- '<|start|>system<|message|>Think: ' + (effort or 'medium') + '. Channels: analysis, final' }}
{{- (', commentary' if tools else '') + '.<|end|>' }}
{%- if rules or tools %}
{{- '<|start|>developer<|message|>' + rules }}
{%- for tool in tools or [] %}{{- '\\nfunction ' + tool.function | tojson }}{% endfor %}
{{- '<|end|>' }}
{%- endif %}
{%- for message in turns %}
{%- if message.role == 'assistant' %}
{%- set is_last = loop.last and not add_generation_prompt %}
{%- if message.reasoning and (is_last or message.tool_calls) %}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + message.reasoning + '<|end|>' }}
{%- endif %}
{%- if message.tool_calls %}
{%- set call = message.tool_calls[0].function %}
{{- '<|start|>assistant<|channel|>commentary to=functions.' + call.name + ' json<|message|>' }}
{{- call.arguments | tojson + '<|call|>' }}
{%- else %}
{{- '<|start|>assistant<|channel|>final<|message|>' + message.content }}
{{- '<|return|>' if is_last else '<|end|>' }}
{%- endif %}
{%- elif message.role == 'tool' %}
{{- '<|start|>functions to=assistant<|channel|>commentary<|message|>' + message.content + '<|end|>' }}
{%- else %}
{{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{% endif %}
"""

STRIPPED_THOUGHTS = """
{{- bos_token }}
{%- for message in messages if message.role == 'system' %}{{- message.content }}{% endfor %}
{%- for message in messages %}
{%- if message.role == 'user' %}
{{- '<|User|>' + message.content }}
{%- elif message.role == 'assistant' %}
{{- '<|Assistant|>' + (message.content if loop.last else message.content.split('</think>')[-1]) + eos_token }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|>' }}{% endif %}
"""

OPENED_THOUGHTS = STRIPPED_THOUGHTS.replace(
    "message.content if loop.last else message.content.split('</think>')[-1]",
    "message.content.split('</think>')[-1]",
).replace("{{- '<|Assistant|>' }}{% endif %}", "{{- '<|Assistant|><think>\\n' }}{% endif %}")
"""A template that strips the thoughts of every answer, and lets the model begin with them."""


Splits = Literal["lines", "words", "nowhere"]
"""Where a tokenizer splits texts before it merges: GPT-4's keeps line ends together, GPT-2's keeps the last
white space before a word apart, SentencePiece's merges anything."""
_LINES = Regex(r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+")


@dataclass(frozen=True)
class TemplateKind:
    """A template with its tokenizer's control tokens, and what conversations it is made for."""

    source: str
    control_tokens: tuple[str, ...]
    end: str
    """The text of `eos_token`."""
    start: str | None = None
    """The text of `bos_token`."""
    variables: dict[str, Any] = field(default_factory=dict[str, Any])
    has_tools: bool = False
    has_parallel_calls: bool = False
    """Whether one turn may have several calls."""
    thoughts: tuple[str, ...] = ()
    """Where an answer's thoughts may be: "reasoning", "reasoning_content" or "inline"."""
    takes_white_space: bool = False
    """Whether control tokens take the white space after them with them."""
    splits: Splits = "lines"

    def tokenizer(self) -> Tokenizer:
        """Make the tokenizer."""
        tokenizer = Tokenizer.from_str(_trained(self.splits))
        tokenizer.add_special_tokens(
            [
                AddedToken(text, rstrip=self.takes_white_space, normalized=False)
                for text in self.control_tokens
            ]
        )
        return tokenizer

    def write(self, folder: Path) -> Path:
        """Write tokenizer and template as a base model's folder has them, and return the folder."""
        self.tokenizer().save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast"} | self.special_tokens()
        (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
        (folder / "chat_template.jinja").write_text(self.source, "utf-8")
        return folder

    def special_tokens(self) -> dict[str, str]:
        """The named tokens."""
        return {"eos_token": self.end} | ({"bos_token": self.start} if self.start else {})


_IM = ("<|im_start|>", "<|im_end|>")
_HARMONY = ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>")
_THINKING = (*_IM, "<think>", "</think>", "<tool_call>", "</tool_call>")
_DEEP = ("<|begin|>", "<|User|>", "<|Assistant|>", "<|eos|>", "<think>", "</think>")

TEMPLATES: dict[str, TemplateKind] = {
    "chatml": TemplateKind(CHATML, _IM, "<|im_end|>"),
    "headers": TemplateKind(
        HEADERS,
        ("<|bos|>", "<|header|>", "<|/header|>", "<|turn_end|>"),
        "<|turn_end|>",
        "<|bos|>",
        has_tools=True,
    ),
    "headers in GPT-2's words": TemplateKind(
        HEADERS,
        ("<|bos|>", "<|header|>", "<|/header|>", "<|turn_end|>"),
        "<|turn_end|>",
        "<|bos|>",
        has_tools=True,
        splits="words",
    ),
    "folded system": TemplateKind(
        FOLDED_SYSTEM,
        ("<bos>", "<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        "<bos>",
        splits="nowhere",
    ),
    "instructions": TemplateKind(
        INSTRUCTIONS, ("<s>", "</s>"), "</s>", "<s>", has_tools=True, splits="nowhere"
    ),
    "instructions in bytes": TemplateKind(
        INSTRUCTIONS, ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", "<s>", has_tools=True
    ),
    "role tags": TemplateKind(
        ROLE_TAGS,
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<|end|>",
        takes_white_space=True,
    ),
    "smollm2": TemplateKind(
        read_chat_template("smollm2"),
        _IM,
        "<|im_end|>",
        has_tools=True,
        has_parallel_calls=True,
        splits="words",
    ),
    "thinking": TemplateKind(
        THINKING,
        _THINKING,
        "<|im_end|>",
        has_tools=True,
        has_parallel_calls=True,
        thoughts=("reasoning", "reasoning_content", "inline"),
    ),
    "thinking disabled": TemplateKind(
        THINKING, _THINKING, "<|im_end|>", variables={"enable_thinking": False}, has_tools=True
    ),
    "channels": TemplateKind(
        CHANNELS,
        _HARMONY,
        "<|return|>",
        variables={"effort": "low"},
        has_tools=True,
        thoughts=("reasoning", "reasoning_content"),
    ),
    "stripped thoughts": TemplateKind(STRIPPED_THOUGHTS, _DEEP, "<|eos|>", "<|begin|>", thoughts=("inline",)),
}


@functools.cache
def _trained(splits: Splits) -> str:
    """A small BPE tokenizer that merges across white space and punctuation where real ones do."""
    if splits == "nowhere":
        tokenizer = Tokenizer(models.BPE(unk_token=None, byte_fallback=True, fuse_unk=False))
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        alphabet = [f"<0x{number:02X}>" for number in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=alphabet, show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE())
        before = [] if splits == "words" else [pre_tokenizers.Split(_LINES, "isolated")]
        as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splits == "words")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, as_bytes])
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    text = Path(__file__).read_text("utf-8").replace("\\n", "\n") + ".\n\n  \n\n\n    \n\n" * 20
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer.to_str()
