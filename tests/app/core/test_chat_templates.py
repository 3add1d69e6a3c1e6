"""The templates that Toque brings are the base models' own, with tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from jinja2 import Template, TemplateError
from pydantic import ValidationError

from app.core.chat_templates import NAMES, read_chat_template
from app.core.settings import BaseModelEntry, Settings
from app.datasets.jinja_template import compile_template, detect_content_format
from app.datasets.template_segments import SAMPLE_TEXTS
from tests.support.service import BASE_MODEL

CONTENT = st.text(max_size=20) | st.sampled_from(
    ["", *SAMPLE_TEXTS, '<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>', "<tools></tools>"]
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": CONTENT | st.none()},
        optional={
            "name": st.text(max_size=5),
            "tool_calls": st.sampled_from([None, []]),
            "reasoning": st.text(max_size=5),
        },
    ),
    max_size=6,
)
WEIGH = {
    "type": "function",
    "function": {"name": "weigh", "description": "Weighs it.", "parameters": {"type": "object"}},
}


@pytest.fixture(scope="module")
def own(base_models_dir: Path) -> Template:
    return compile_template((base_models_dir / BASE_MODEL / "chat_template.jinja").read_text("utf-8"))


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"id": "call-1", "type": "function", "function": {"arguments": arguments, "name": name}}


def rendered(messages: list[dict[str, Any]], tools: list[Any] | None, *, prompt: bool = False) -> str:
    template = compile_template(read_chat_template("smollm2"))
    return template.render(messages=messages, tools=tools, add_generation_prompt=prompt)


def test_without_tools_the_template_of_smollm2_writes_what_its_own_writes(own: Template) -> None:
    ours = compile_template(read_chat_template("smollm2"))
    assert detect_content_format(ours) == detect_content_format(own)

    def outcome(template: Template, **given: Any) -> str | type[Exception]:
        try:
            return template.render(**given)
        except (TemplateError, TypeError) as error:
            return type(error)

    @given(MESSAGES, st.sampled_from([None, []]), st.booleans())
    @hypothesis_settings(max_examples=500)
    def check(messages: list[dict[str, Any]], tools: list[Any] | None, prompt: bool) -> None:
        values = {"messages": messages, "tools": tools, "add_generation_prompt": prompt}
        assert outcome(ours, **values) == outcome(own, **values)

    check()


def test_functions_follow_the_system_prompt() -> None:
    listed = (
        "\n\nYou can call these functions:\n"
        + json.dumps(WEIGH["function"])
        + '\nWrite each call in this form:\n<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>'
    )
    question = {"role": "user", "content": "How heavy?"}
    asked = "<|im_start|>user\nHow heavy?<|im_end|>\n<|im_start|>assistant\n"
    assert rendered([{"role": "system", "content": "Cook."}, question], [WEIGH], prompt=True) == (
        f"<|im_start|>system\nCook.{listed}<|im_end|>\n{asked}"
    )
    default = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert rendered([question], [WEIGH], prompt=True) == (
        f"<|im_start|>system\n{default}{listed}<|im_end|>\n{asked}"
    )


def test_calls_and_results_are_turns() -> None:
    calls = [call("weigh", item="crème", grams=1.0), call("taste")]
    text = rendered(
        [
            {"role": "system", "content": "Cook."},
            {"role": "assistant", "content": "At once.\n", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "call-1", "content": "200 g"},
            {"role": "assistant", "content": None, "tool_calls": calls[1:]},
        ],
        None,
    )
    first = '<tool_call>\n{"name": "weigh", "arguments": {"item": "crème", "grams": 1.0}}\n</tool_call>'
    second = '<tool_call>\n{"name": "taste", "arguments": {}}\n</tool_call>'
    assert text == (
        "<|im_start|>system\nCook.<|im_end|>\n"
        f"<|im_start|>assistant\nAt once.\n{first}\n{second}<|im_end|>\n"
        "<|im_start|>tool\n200 g<|im_end|>\n"
        f"<|im_start|>assistant\n{second}<|im_end|>\n"
    )


def test_an_entry_names_a_template_or_has_its_text() -> None:
    default = Settings(data_dir=Path("/none")).base_models[0]
    assert (default.chat_template, default.tool_parser) == ("smollm2", "hermes")
    assert default.chat_template_source == read_chat_template("smollm2")
    assert NAMES == ("smollm2",)
    written = BaseModelEntry(name="a", source="/a", chat_template="{{ messages }}")
    assert written.chat_template_source == "{{ messages }}"
    assert BaseModelEntry(name="a", source="/a").chat_template_source is None
    with pytest.raises(ValidationError, match="or it is one of: smollm2"):
        BaseModelEntry(name="a", source="/a", chat_template="template.jinja")
