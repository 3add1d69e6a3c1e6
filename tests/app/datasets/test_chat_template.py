"""Our rendering and tokens are transformers' own, and the mask marks what the model must write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from app.datasets.chat_template import ChatTemplate
from app.datasets.formats import parse_line
from app.datasets.types import ExampleError
from tests.support.service import BASE_MODEL

TOOL = {"type": "function", "function": {"name": "stock", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "stock", "arguments": '{"item": "leek"}'}}
TURNS = [
    {"role": "system", "content": "You cook."},
    {"role": "user", "content": "Soup? 🍲\u2028"},
    {"role": "assistant", "content": "Leek.", "weight": 0},
    {"role": "user", "content": "  And then?  "},
    {"role": "assistant", "content": "Pie.\n\nWith cream."},
]
TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "bracketed": "{{ bos_token }}{%- for m in messages %}"
    "{%- if m.role == 'user' %}\n[INST] {{ m.content | trim }} [/INST]"
    "{%- elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{%- endif %}{%- endfor %}",
    "with tools": "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}


@pytest.fixture(scope="module")
def folder(base_models_dir: Path) -> Path:
    return base_models_dir / BASE_MODEL


def pair(folder: Path, source: str | None) -> tuple[ChatTemplate, Any]:
    """Ours and transformers', with the same template."""
    reference = AutoTokenizer.from_pretrained(folder)
    if source is None:
        return ChatTemplate.load(folder), reference
    reference.chat_template = source
    special = {"bos_token": reference.bos_token, "eos_token": reference.eos_token}
    return ChatTemplate(source, Tokenizer.from_file(str(folder / "tokenizer.json")), special), reference


@pytest.mark.parametrize("name", [None, *TEMPLATES])
def test_tokens_are_those_of_transformers(folder: Path, name: str | None) -> None:
    ours, reference = pair(folder, TEMPLATES[name] if name else None)
    conversation: dict[str, Any] = {"messages": TURNS}
    if name == "with tools":
        call = {"role": "assistant", "content": "", "tool_calls": [CALL]}
        conversation = {"messages": [*TURNS[:2], call, TURNS[4]], "tools": [TOOL]}
    example = parse_line(json.dumps(conversation).encode())
    [tokenized] = ours.tokenize(example)

    plain = [
        {key: value for key, value in turn.items() if key != "weight"} for turn in conversation["messages"]
    ]
    for turn in plain:
        for made in turn.get("tool_calls", []):
            turn["tool_calls"] = [made | {"function": {"name": "stock", "arguments": {"item": "leek"}}}]
    described = {"name": "stock", "description": None, "parameters": {"type": "object"}}
    tools = [TOOL | {"function": described}] if "tools" in conversation else None
    expected = reference.apply_chat_template(plain, tools=tools, tokenize=True, return_dict=False)
    assert tokenized.input_ids == expected
    assert len(tokenized.target_mask) == len(expected)


@pytest.mark.parametrize("name", [None, "chatml", "bracketed"])
def test_the_mask_is_the_answers_that_count_and_their_end(folder: Path, name: str | None) -> None:
    ours, reference = pair(folder, TEMPLATES[name] if name else None)
    [tokenized] = ours.tokenize(parse_line(json.dumps({"messages": TURNS}).encode()))
    marked = [
        token for token, wanted in zip(tokenized.input_ids, tokenized.target_mask, strict=True) if wanted
    ]
    assert reference.decode(marked).strip() == "Pie.\n\nWith cream.<|im_end|>"
    everything = [dict(turn, weight=1) if turn["role"] == "assistant" else turn for turn in TURNS]
    [tokenized] = ours.tokenize(parse_line(json.dumps({"messages": everything}).encode()))
    marked = [
        token for token, wanted in zip(tokenized.input_ids, tokenized.target_mask, strict=True) if wanted
    ]
    assert reference.decode(marked).count("<|im_end|>") == 2
    assert "Leek." in reference.decode(marked)
    assert "Soup" not in reference.decode(marked)


def test_a_bare_pair_has_no_template(folder: Path) -> None:
    ours, reference = pair(folder, None)
    [tokenized] = ours.tokenize(parse_line(b'{"prompt": "Leek", "completion": " soup"}'))
    assert reference.decode(tokenized.input_ids) == "Leek soup<|im_end|>"
    assert tokenized.target_mask == [False] * (len(tokenized.input_ids) - 2) + [True, True]


def test_what_a_template_cannot_say_is_an_error(folder: Path) -> None:
    ours, _ = pair(folder, None)
    tools = {"messages": [*TURNS[:2], {"role": "assistant", "tool_calls": [CALL]}], "tools": [TOOL]}
    with pytest.raises(ExampleError) as caught:
        ours.tokenize(parse_line(json.dumps(tools).encode()))
    assert caught.value.code == "tools_not_supported"
    rewriting, _ = pair(folder, "{% for m in messages %}{{ m.content if loop.last else '-' }}{% endfor %}")
    with pytest.raises(ExampleError) as caught:
        rewriting.tokenize(parse_line(json.dumps({"messages": TURNS}).encode()))
    assert (caught.value.code, caught.value.pointer) == ("answer_not_after_prompt", "/messages/4")
    refusing, _ = pair(folder, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ExampleError, match="roles must alternate"):
        refusing.tokenize(parse_line(json.dumps({"messages": TURNS}).encode()))
    escaping, _ = pair(folder, "{{ ''.__class__.__mro__ }}")
    with pytest.raises(ExampleError):
        escaping.tokenize(parse_line(json.dumps({"messages": TURNS}).encode()))


@given(
    st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
)
@hypothesis_settings(max_examples=500)
def test_any_bytes_are_an_example_or_an_error(line: bytes) -> None:
    try:
        parse_line(line)
    except ExampleError as error:
        assert error.code and error.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ALMOST = st.fixed_dictionaries(
    {},
    optional={
        "messages": JSON
        | st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["user", "assistant", "tool", "system", "x"]) | JSON},
                optional={"content": JSON, "weight": JSON, "tool_calls": JSON, "name": JSON},
            ),
            max_size=3,
        ),
        "tools": JSON,
        "prompt": JSON,
        "completion": JSON,
    },
)


@given(ALMOST)
@hypothesis_settings(max_examples=500)
def test_almost_right_lines_are_an_example_or_an_error(line: dict[str, Any]) -> None:
    try:
        parse_line(json.dumps(line).encode())
    except ExampleError as error:
        assert error.code and error.message
        assert error.pointer == "" or error.pointer.startswith("/")
