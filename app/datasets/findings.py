"""Everything that validation can find in a training file: each code with its severity and hint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "info"]
MAX_SHOWN_PER_CODE = 10
"""The report lists this many occurrences of each code, and counts the rest."""
_EXCERPT_CHARACTERS = 120


class FindingKind(NamedTuple):
    """How severe a finding is, and what to do about it. Only errors stop a job."""

    severity: Severity
    hint: str


def _error(hint: str) -> FindingKind:
    return FindingKind("error", hint)


def _warning(hint: str) -> FindingKind:
    return FindingKind("warning", hint)


def _info(hint: str) -> FindingKind:
    return FindingKind("info", hint)


_REPACK = "Compress it again, or upload it as it is."
_UNPACK = "Unpack it, and upload the JSONL file that is in it (plain, .gz or .zst)."

FINDING_KINDS: Mapping[str, FindingKind] = {
    # The file as a whole.
    "empty_file": _error("Write one example on each line."),
    "zip_archive": _error(_UNPACK),
    "tar_archive": _error(_UNPACK),
    "unsupported_compression": _error(_UNPACK),
    "pickle": _error("Write the examples as JSONL, one object a line."),
    "parquet": _error("Write its rows as JSONL: `dataset.to_json(path)`."),
    "utf16": _error("Save the file as UTF-8."),
    "json_array": _error("Write each element on a line of its own: `jq -c '.[]'`."),
    "csv": _error("Turn it into JSONL first: `toque files convert`."),
    "truncated_file": _error(_REPACK),
    "damaged_file": _error(_REPACK),
    "decompression_bomb": _error("Upload it without compression."),
    "too_many_lines": _error(
        "Remove the lines that are not examples, or ask whoever runs the service to raise the limit."
    ),
    "check_timed_out": _error("Upload a smaller file, or ask whoever runs the service to raise the limit."),
    "too_few_examples": _warning(
        "A training file needs 10 examples at least; 50 to 100 good ones show an effect."
    ),
    "mixed_formats": _warning("Keep one format in a file: a job trains chat or preference pairs, not both."),
    "byte_order_mark": _info("It is ignored; save the file as UTF-8 without BOM."),
    "crlf_line_ends": _info("They are read as line ends; nothing needs to be done."),
    "no_final_newline": _info("The last line counts; see that the file was not cut."),
    "empty_line": _info("Empty lines are skipped."),
    "converted_format": _info("It is read as chat messages; nothing needs to be done."),
    # A line as JSON.
    "line_too_long": _error("Split the example: it would not fit any model's context."),
    "invalid_encoding": _error("Save the file as UTF-8."),
    "invalid_json": _error(
        "Write each line with a JSON library; quotes and newlines in texts must be escaped."
    ),
    "not_an_object": _error('Each line is one object: {"messages": […]}.'),
    "nested_too_deep": _error("Flatten the value; no format nests so deep."),
    "non_finite_number": _error(
        "Use null or leave the field out; `json.dumps(…, allow_nan=False)` finds it."
    ),
    "number_too_large": _error("Write it as a string, or leave the field out."),
    "duplicate_key": _error("Keep one of the two: readers disagree about which one counts."),
    "null_character": _error("Take the character out; it comes from binary data or a broken export."),
    "lone_surrogate": _error("Escape characters beyond U+FFFF as a pair, or write them as UTF-8."),
    "unicode_line_separator": _info("U+2028 and U+2029 stay in the text: lines end at \\n alone."),
    # An example.
    "unknown_format": _error("Write chat messages, prompt and completion, or a preference pair."),
    "invalid_field": _error("Give the field the type that the message names."),
    "missing_field": _error("Add the field."),
    "unknown_role": _error("Use one of the roles that the message lists."),
    "unexpected_role": _error("Put what comes before the answer into 'input'."),
    "no_messages": _error("Give it a user message and the assistant's answer."),
    "no_assistant_turn": _error("End it with the assistant message that should be learned."),
    "last_turn_not_assistant": _error("Add the assistant's answer, or take the last turn away."),
    "empty_content": _error("Write the turn's text, or take the turn away."),
    "empty_completion": _error("Write what follows the prompt."),
    "unsupported_content": _error("Keep the text parts only; images, audio and files cannot be learnt here."),
    "invalid_tool_call": _error(
        "'arguments' is a string that holds a JSON object; only the assistant calls, and once in a turn "
        "where 'parallel_tool_calls' is false."
    ),
    "unknown_tool": _error("Describe the tool in 'tools', or correct its name."),
    "unknown_tool_call": _error("Give the tool turn the id of the call that it answers."),
    "invalid_reasoning": _error(
        "Keep one of 'reasoning' and 'reasoning_content', on assistant messages alone."
    ),
    "invalid_weight": _error("Leave 'weight' out, or set 0 or 1 on an assistant message."),
    "nothing_to_learn": _error("Give one assistant turn the weight 1, or no weight."),
    "equal_outputs": _error("Take the pair away, or correct one of the answers."),
    "assistant_first": _warning("Start with what the user says; the model is never asked to speak first."),
    "consecutive_user_turns": _warning("Join them into one turn, or add the answer between them."),
    "duplicate_example": _warning("Keep one: repeated examples weigh double."),
    "near_duplicate": _info("It equals an earlier one but for case, spaces and punctuation; is that meant?"),
    # An example, as the base model reads it.
    "example_too_long": _error("Shorten or split it: an example is never cut."),
    "special_token_in_content": _warning(
        "The base's control tokens in a text end turns early; take them out."
    ),
    "tools_not_supported": _error(
        "Choose a base model whose chat template has tools, or set such a 'chat_template' in its "
        "catalogue entry."
    ),
    "template_refused": _error("Change the conversation as the template asks, or choose another base."),
    "reasoning_not_supported": _error(
        "Remove the thoughts, or choose a base whose chat template writes them."
    ),
    "answer_not_after_prompt": _error(
        "Choose another base, or another 'chat_template' or 'chat_template_kwargs' in its catalogue entry."
    ),
    "answer_rewritten": _error("Move all assistant turns but the last one of each answer into 'input'."),
    # Two files.
    "validation_equals_training": _warning(
        "Hold other examples out: this one measures memory, not learning."
    ),
}

BASE_MODEL_CODES = frozenset(
    {
        "example_too_long",
        "tools_not_supported",
        "template_refused",
        "reasoning_not_supported",
        "answer_not_after_prompt",
        "answer_rewritten",
    }
)
"""Errors that concern one base model only: the file may be used with another."""


class Occurrence(NamedTuple):
    """One place at which something was found."""

    line: int | None
    pointer: str
    message: str
    excerpt: str


@dataclass
class Occurrences:
    """The number of occurrences of one code, and the first few of them."""

    count: int = 0
    first: list[Occurrence] = field(default_factory=list[Occurrence])


@dataclass
class Findings:
    """The findings of a scan, by code."""

    by_code: dict[str, Occurrences] = field(default_factory=dict[str, Occurrences])

    def add(
        self, code: str, line: int | None, message: str, *, pointer: str = "", content: bytes = b""
    ) -> None:
        """Adds an occurrence; `content` is the line, of which an excerpt is kept."""
        known = self.by_code.setdefault(code, Occurrences())
        known.count += 1
        if len(known.first) < MAX_SHOWN_PER_CODE:
            known.first.append(Occurrence(line, pointer, message, _excerpt(content)))

    def merge(self, later: Findings, lines_before: int) -> None:
        """Adds the findings of a later part of the file; its line numbers are shifted by `lines_before`."""
        for code, occurrences in later.by_code.items():
            known = self.by_code.setdefault(code, Occurrences())
            known.count += occurrences.count
            for occurrence in occurrences.first[: MAX_SHOWN_PER_CODE - len(known.first)]:
                line = occurrence.line + lines_before if occurrence.line is not None else None
                known.first.append(occurrence._replace(line=line))


def _excerpt(content: bytes) -> str:
    text = content[: 4 * _EXCERPT_CHARACTERS].decode("utf-8", "replace")
    shown = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )
    return shown if len(shown) <= _EXCERPT_CHARACTERS else shown[: _EXCERPT_CHARACTERS - 1] + "…"
