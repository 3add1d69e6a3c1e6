"""Each assistant turn is learnt as the engine asks for it, whatever the template does to earlier turns."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from app.datasets.chat_template import ChatTemplate, TemplateOptions, TokenizedExample
from app.datasets.formats import parse_line
from app.datasets.token_counter import TokenCounter, TokenCounts
from app.datasets.types import ChatExample, ExampleError, PreferenceExample
from app.fine_tuning.methods import METHODS
from tests.support.chat_templates import FOLDED_SYSTEM, OPENED_THOUGHTS, TEMPLATES, TemplateKind
from tests.support.conversations import TOOLS, conversations, texts

Turn = dict[str, Any]
# As vLLM gives them to the template.
TOOLS_AS_SERVED = [
    {
        "type": "function",
        "function": {
            "name": "stock",
            "description": None,
            "parameters": {"type": "object", "properties": {}},
        },
    },
    {
        "type": "function",
        "function": {"name": "order", "description": "Orders.", "parameters": None, "strict": True},
    },
]


def template_of(kind: TemplateKind) -> ChatTemplate:
    return ChatTemplate(kind.source, kind.tokenizer(), kind.special_tokens(), kind.variables)


def transformers_of(kind: TemplateKind) -> PreTrainedTokenizerFast:
    reference = PreTrainedTokenizerFast(tokenizer_object=kind.tokenizer(), **kind.special_tokens())
    reference.chat_template = kind.source
    return reference


def as_served(kind: TemplateKind, messages: list[Turn]) -> list[Turn]:
    """The messages as vLLM gives them to the template."""
    knows_developers = "'developer'" in kind.source
    served: list[Turn] = []
    for number, turn in enumerate(messages, start=1):
        role = "system" if turn["role"] == "developer" and not knows_developers else turn["role"]
        one: Turn = {"role": role, "content": turn["content"] or ""}
        if "tool_call_id" in turn:
            one["tool_call_id"] = turn["tool_call_id"]
        for name in ("reasoning", "reasoning_content"):
            if name in turn:
                one |= {"reasoning": turn[name], "reasoning_content": turn[name]}
        if "tool_calls" in turn:
            # vLLM sorts the fields of the calls that the model reads; it writes the name first.
            order = ("name", "arguments") if number == len(messages) else ("arguments", "name")
            one["tool_calls"] = []
            for call in turn["tool_calls"]:
                function = call["function"] | {"arguments": json.loads(call["function"]["arguments"])}
                one["tool_calls"].append(call | {"function": {field: function[field] for field in order}})
        served.append(one)
    return served


def without_taken(kind: TemplateKind, text: str) -> str:
    """The text without the white space that its control tokens take with them."""
    if not kind.takes_white_space:
        return text
    return re.sub(rf"({'|'.join(map(re.escape, kind.control_tokens))})\s+", r"\1", text)


def check_sequences(
    kind: TemplateKind, reference: Any, line: dict[str, Any], sequences: tuple[TokenizedExample, ...]
) -> None:
    """Check that the sequences are, turn by turn, what the engine asks and what it is to answer."""

    def render(turns: int, *, prompt: bool, tokenize: bool) -> Any:
        return reference.apply_chat_template(
            as_served(kind, line["messages"][:turns]),
            tools=TOOLS_AS_SERVED if "tools" in line else None,
            add_generation_prompt=prompt,
            tokenize=tokenize,
            return_dict=False,
            **kind.variables,
        )

    remaining = list(sequences)
    current: TokenizedExample | None = None
    learnt = 0
    for number, turn in enumerate(line["messages"]):
        if turn["role"] != "assistant" or turn.get("weight") == 0:
            continue
        prompt: list[int] = render(number, prompt=True, tokenize=True)
        answer: str = render(number + 1, prompt=False, tokenize=False).rstrip()
        answer = answer.removeprefix(render(number, prompt=True, tokenize=False))
        start = len(prompt)
        if (
            current is None
            or current.input_ids[:start] != prompt
            or current.target_mask[start : start + 1] != [True]
        ):
            if current is not None:
                assert not any(current.target_mask[learnt:])
            current, learnt = remaining.pop(0), 0
        assert current.input_ids[:start] == prompt
        assert not any(current.target_mask[learnt:start])
        learnt = start + [*current.target_mask[start:], False].index(False)
        written = reference.decode(current.input_ids[start:learnt])
        assert without_taken(kind, written) == without_taken(kind, answer)
    assert current is not None and not any(current.target_mask[learnt:])
    assert not remaining


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_turn_is_learnt_after_the_tokens_that_ask_for_it(name: str) -> None:
    kind = TEMPLATES[name]
    template, reference = template_of(kind), transformers_of(kind)
    outcomes: Counter[str] = Counter()

    @given(conversations(kind))
    @hypothesis_settings(max_examples=70)
    def check(line: dict[str, Any]) -> None:
        example = cast(ChatExample, parse_line(json.dumps(line).encode()))
        try:
            sequences = template.tokenize(example)
        except ExampleError as error:
            outcomes[error.code] += 1
            return
        outcomes["learnt"] += 1
        outcomes["several sequences"] += len(sequences) > 1
        check_sequences(kind, reference, line, sequences)

    check()
    refused = outcomes.total() - outcomes["learnt"] - outcomes["several sequences"]
    assert refused < outcomes["learnt"], outcomes
    never_rewrites = name in ("headers", "folded system")
    assert (outcomes["several sequences"] == 0) == never_rewrites, outcomes


def texts_learnt(kind: TemplateKind, *messages: Turn, **fields: Any) -> list[list[str]]:
    """What is learnt in each sequence."""
    line = {"messages": [*messages]} | fields
    example = cast(ChatExample, parse_line(json.dumps(line).encode()))
    rendered = template_of(kind).render_with_targets(example)
    return [[text[start:end] for start, end in spans] for text, spans in rendered]


ASK: Turn = {"role": "user", "content": "Soup?"}
CALL = {"id": "1", "type": "function", "function": {"name": "stock", "arguments": '{"item": "leek"}'}}
CALLING: Turn = {"role": "assistant", "reasoning": "Look.", "tool_calls": [CALL]}
RESULT: Turn = {"role": "tool", "tool_call_id": "1", "content": "Three."}
TELL: Turn = {"role": "assistant", "reasoning": "Hm.", "content": "Leek."}


def test_an_answer_is_learnt_with_its_thoughts_and_read_without_them() -> None:
    kind = TEMPLATES["thinking"]
    assert texts_learnt(kind, ASK, TELL, ASK, TELL | {"content": "Pea."}) == [
        ["<think>\nHm.\n</think>\n\nLeek.<|im_end|>"],
        ["<think>\nHm.\n</think>\n\nPea.<|im_end|>"],
    ]
    inline = {"role": "assistant", "content": "<think>Hm.</think>Leek."}
    assert texts_learnt(kind, ASK, inline) == [["<think>\nHm.\n</think>\n\nLeek.<|im_end|>"]]
    assert texts_learnt(TEMPLATES["thinking disabled"], ASK, {"role": "assistant", "content": "Leek."}) == [
        ["Leek.<|im_end|>"]
    ]


def test_calls_that_one_answer_needs_share_its_sequence() -> None:
    call = '<tool_call>\n{"name": "stock", "arguments": {"item": "leek"}}\n</tool_call>'
    assert texts_learnt(TEMPLATES["thinking"], ASK, CALLING, RESULT, TELL, tools=TOOLS) == [
        [
            f"<think>\nLook.\n</think>\n\n{call}<|im_end|>",
            "<think>\nHm.\n</think>\n\nLeek.<|im_end|>",
        ]
    ]


def test_the_last_turn_ends_with_the_token_that_stops_the_engine() -> None:
    say = "<|channel|>final<|message|>Leek."
    thoughts = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    assert texts_learnt(TEMPLATES["channels"], ASK, TELL, ASK, TELL) == [
        [f"{thoughts}{say}<|return|>"],
        [f"{thoughts}{say}<|return|>"],
    ]
    [learnt] = texts_learnt(TEMPLATES["channels"], ASK, CALLING, RESULT, TELL, tools=TOOLS)
    assert learnt[0].endswith('to=functions.stock json<|message|>{"item": "leek"}<|call|>')
    assert learnt[1] == f"{thoughts}{say}<|return|>"


@pytest.mark.parametrize(
    ("kind", "answer", "code"),
    [
        (replace(TEMPLATES["stripped thoughts"], source=OPENED_THOUGHTS), TELL, "answer_not_after_prompt"),
        (TEMPLATES["stripped thoughts"], TELL, "reasoning_not_supported"),
        (TEMPLATES["thinking disabled"], TELL, "answer_not_after_prompt"),
        (TEMPLATES["chatml"], TELL, "reasoning_not_supported"),
    ],
)
def test_what_the_model_is_never_asked_for_is_refused(kind: TemplateKind, answer: Turn, code: str) -> None:
    with pytest.raises(ExampleError) as refused:
        texts_learnt(kind, ASK, answer)
    assert (refused.value.code, refused.value.pointer) == (code, "/messages/1")
    texts_learnt(TEMPLATES["chatml"], ASK, answer | {"weight": 0}, ASK, {"role": "assistant", "content": "x"})


def test_both_answers_of_a_pair_are_one_sequence() -> None:
    def tokenize(preferred: list[Turn]) -> tuple[TokenizedExample, ...]:
        pair = {
            "input": {"messages": [ASK], "tools": TOOLS},
            "preferred_output": preferred,
            "non_preferred_output": [{"role": "assistant", "reasoning": "?", "content": "None."}],
        }
        example = parse_line(json.dumps(pair).encode())
        assert isinstance(example, PreferenceExample)
        return METHODS["dpo"].tokenize(template_of(TEMPLATES["channels"]), example)

    assert len(tokenize([CALLING, RESULT, TELL])) == 2
    with pytest.raises(ExampleError) as refused:
        tokenize([{"role": "assistant", "content": "Leek."}, {"role": "assistant", "content": "Pea."}])
    assert refused.value.code == "answer_rewritten"


@st.composite
def plain_conversations(draw: st.DrawFn, kind: TemplateKind) -> dict[str, Any]:
    """A line without tools and thoughts, whose answers begin with a word."""
    text = texts(kind).filter(lambda drawn: "think>" not in drawn and "tool_response>" not in drawn)
    # A folded system prompt is a part of the user's turn.
    begins = kind.source != FOLDED_SYSTEM and draw(st.booleans())
    messages: list[Turn] = [{"role": "system", "content": draw(text)}] if begins else []
    for _ in range(draw(st.integers(1, 4))):
        weight = draw(st.sampled_from([{}, {"weight": 0}, {"weight": 1}]))
        messages.append({"role": "user", "content": draw(text)})
        messages.append({"role": "assistant", "content": "Leek" + draw(text)} | weight)
    if all(turn.get("weight") == 0 for turn in messages if turn["role"] == "assistant"):
        messages[-1].pop("weight")
    return {"messages": messages}


def check_count(template: ChatTemplate, example: ChatExample, counted: TokenCounts | ExampleError) -> int:
    """Check that the count is that of the sequences; return how many they are."""
    try:
        sequences = template.tokenize(example)
    except ExampleError as error:
        assert isinstance(counted, ExampleError) and counted.code == error.code
        return 0
    assert not isinstance(counted, ExampleError)
    assert counted.tokens == sum(len(one.input_ids) for one in sequences)
    assert counted.targets == sum(sum(one.target_mask[1:]) for one in sequences)
    assert counted.longest == max(len(one.input_ids) for one in sequences)
    return len(sequences)


@pytest.mark.parametrize("name", TEMPLATES)
def test_counts_are_those_of_the_sequences(name: str, tmp_path: Path) -> None:
    kind = TEMPLATES[name]
    counter, template = (
        TokenCounter.load(kind.write(tmp_path), TemplateOptions(None, kind.variables)),
        template_of(kind),
    )

    @given(st.lists(conversations(kind) | plain_conversations(kind), min_size=1, max_size=3))
    @hypothesis_settings(max_examples=40)
    def check(lines: list[dict[str, Any]]) -> None:
        examples = [cast(ChatExample, parse_line(json.dumps(line).encode())) for line in lines]
        for example, counted in zip(examples, counter.count(examples), strict=True):
            check_count(template, example, counted)

    check()


def test_an_answer_whose_first_token_would_begin_in_its_prompt_is_counted_as_it_is_learnt(
    tmp_path: Path,
) -> None:
    kind = TEMPLATES["folded system"]
    counter, template = TokenCounter.load(kind.write(tmp_path)), template_of(kind)
    assert counter.counts_by_turn
    assert len(template.encode("\n_")) == 1  # SentencePiece merges the end of the prompt with the answer
    line = {"messages": [ASK, {"role": "assistant", "content": "_"}]}
    example = cast(ChatExample, parse_line(json.dumps(line).encode()))
    [counted] = counter.count([example])
    assert check_count(template, example, counted) == 1


BY_TURN = [
    "chatml",
    "headers",
    "folded system",
    "smollm2",
    "role tags",
    "thinking",
    "thinking disabled",
    "stripped thoughts",
]


@pytest.mark.parametrize("name", TEMPLATES)
def test_plain_conversations_are_counted_without_their_template(name: str, tmp_path: Path) -> None:
    kind = TEMPLATES[name]
    counter, template = (
        TokenCounter.load(kind.write(tmp_path), TemplateOptions(None, kind.variables)),
        template_of(kind),
    )
    assert counter.counts_by_turn == (name in BY_TURN)
    if not counter.counts_by_turn:
        return
    (tmp_path / "chat_template.jinja").unlink()  # it is read when it is first needed
    sequences: Counter[int] = Counter()

    @given(plain_conversations(kind))
    @hypothesis_settings(max_examples=60)
    def check(line: dict[str, Any]) -> None:
        example = cast(ChatExample, parse_line(json.dumps(line).encode()))
        [counted] = counter.count([example])
        sequences[check_count(template, example, counted)] += 1

    check()
    assert (max(sequences) > 1) == (name in ("thinking", "thinking disabled")), sequences


def test_an_answer_of_several_turns_is_refused_by_turn_as_well(tmp_path: Path) -> None:
    source = TEMPLATES["thinking"].source.replace(
        "loop.last or", "loop.last and not add_generation_prompt or"
    )
    counter = TokenCounter.load(replace(TEMPLATES["thinking"], source=source).write(tmp_path))
    answer: Turn = {"role": "assistant", "content": "Leek."}

    def count(preferred: list[Turn]) -> TokenCounts | ExampleError:
        pair = {"input": {"messages": [ASK]}, "preferred_output": preferred}
        line = pair | {"non_preferred_output": [answer | {"content": "Pea."}]}
        [counted] = counter.count([parse_line(json.dumps(line).encode())])
        return counted

    assert isinstance(count([answer]), TokenCounts)
    refused = count([answer, answer])
    assert isinstance(refused, ExampleError) and refused.code == "answer_rewritten"
