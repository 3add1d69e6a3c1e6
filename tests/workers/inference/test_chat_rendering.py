"""Training gives a chat template what vLLM gives it, whatever the conversation holds."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from app.core.chat_templates import read_chat_template
from app.datasets.chat_template import ChatTemplate, TemplateOptions
from app.datasets.formats import parse_line
from app.datasets.jinja_template import template_tools
from app.datasets.types import ChatExample
from tests.support.chat_templates import TEMPLATES
from tests.support.conversations import arguments, texts
from workers.inference.vllm_process import template_arguments
from workers.training.parity import requested

CALL = {"id": "1", "type": "function", "function": {"name": "stock", "arguments": '{"item": "leek"}'}}
ORDER = {"id": "2", "type": "function", "function": {"name": "order", "arguments": '{"n":1.0,"to":["é"]}'}}
LINE = {
    "tools": [{"name": "stock"}, {"type": "function", "function": {"strict": True, "name": "order"}}],
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "Cook."}, {"type": "text", "text": "Well."}]},
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "name": "ada", "content": "Soup?"},
        {"role": "assistant", "reasoning_content": "Look.", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "Three."}]},
        {"role": "assistant", "content": "At once.", "tool_calls": [CALL, ORDER]},
        {"role": "tool", "tool_call_id": "2", "content": "Done."},
        {"role": "assistant", "reasoning": "Hm.", "content": "Leek.", "weight": 0},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": "Pie."},
    ],
}
SHOWS_ALL = """
{%- for m in messages %}
{{- [m.role, m.name or '', m.content, m.tool_call_id or '', m.tool_calls or []] | tojson }}
{{- [m.reasoning or '', m.reasoning_content or ''] | tojson }}
{%- endfor %}
{{- tools | tojson }}{{ add_generation_prompt }}"""
SHOWS_PARTS = SHOWS_ALL.replace("m.content,", "'' if m.content is string else m.content,")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what vLLM imports is not ours
@pytest.mark.parametrize(
    "source",
    [SHOWS_ALL, f"{SHOWS_ALL}'developer'", SHOWS_PARTS, read_chat_template("smollm2")],
    ids=["text", "developer", "parts", "smollm2"],
)
def test_messages_and_tools_are_those_of_vllm(source: str) -> None:
    from vllm.entrypoints.serve.tokenize.protocol import TokenizeChatRequest
    from vllm.renderers import hf
    from vllm.renderers.chat_utils import parse_chat_messages

    kind = TEMPLATES["chatml"]
    reference = PreTrainedTokenizerFast(tokenizer_object=kind.tokenizer(), **kind.special_tokens())
    chat = cast(ChatExample, parse_line(json.dumps(LINE).encode()))
    ours = ChatTemplate(source, kind.tokenizer(), kind.special_tokens())
    asked = chat.messages[:-1]
    request = TokenizeChatRequest.model_validate(
        {"messages": [requested(message) for message in asked], "tools": template_tools(chat.tools)}
    )
    model: Any = SimpleNamespace(multimodal_config=None, enable_prompt_embeds=False)
    assert ours.content_format == ("openai" if source == SHOWS_PARTS else "string")
    conversation, _, _ = parse_chat_messages(request.messages, model, ours.content_format)
    served = hf.safe_apply_chat_template(
        model,
        reference,
        conversation,
        tools=[tool.model_dump() for tool in request.tools or []],
        chat_template=source,
        tokenize=False,
        add_generation_prompt=True,
    )
    assert ours.render(chat, turns=len(asked), generation_prompt=True) == served


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_vllm_is_given_the_template_of_the_catalogue(tmp_path: Path) -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    folder = TEMPLATES["chatml"].write(tmp_path)
    own = (folder / "chat_template.jinja").read_text()
    (tmp_path / "engine").mkdir()
    for options in (
        TemplateOptions(),
        TemplateOptions("{{ messages[0].content[0].text }}\n", {"enable_thinking": False}),
    ):
        arguments = template_arguments(folder, options, tmp_path / "engine")
        parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(["model", *arguments])
        assert Path(parsed.chat_template).read_text() == (options.chat_template or own)
        assert parsed.default_chat_template_kwargs == options.chat_template_kwargs
        assert parsed.chat_template_content_format == ("openai" if options.chat_template else "string")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_calls_are_learnt_in_the_form_that_vllm_parses() -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser

    kind = TEMPLATES["smollm2"]
    template = ChatTemplate(kind.source, kind.tokenizer(), kind.special_tokens())
    reference = PreTrainedTokenizerFast(tokenizer_object=kind.tokenizer(), **kind.special_tokens())
    request = ChatCompletionRequest.model_validate({"messages": [{"role": "user", "content": "x"}]})

    @given(texts(kind), st.lists(arguments(kind), min_size=1, max_size=3), st.none() | texts(kind))
    @hypothesis_settings(max_examples=100)
    def check(question: str, given_arguments: list[str], content: str | None) -> None:
        assume(content is None or "<|im_end|>" not in content)
        functions = [{"name": "stock", "arguments": each} for each in given_arguments]
        calls = [
            {"id": str(number), "type": "function", "function": each} for number, each in enumerate(functions)
        ]
        answer = {"role": "assistant", "content": content, "tool_calls": calls}
        line = {"messages": [{"role": "user", "content": question}, answer], "tools": [{"name": "stock"}]}
        [sequence] = template.tokenize(parse_line(json.dumps(line).encode()))
        marked = zip(sequence.input_ids, sequence.target_mask, strict=True)
        learnt = reference.decode([token for token, is_target in marked if is_target])
        assert learnt.endswith("</tool_call><|im_end|>")
        parsed = Hermes2ProToolParser(reference).extract_tool_calls(
            learnt.removesuffix("<|im_end|>"), request
        )
        assert [(call.function.name, json.loads(call.function.arguments)) for call in parsed.tool_calls] == [
            ("stock", json.loads(each)) for each in given_arguments
        ]
        assert (parsed.content or "").rstrip() == (content or "").rstrip()

    check()
