"""Tokens and loss masks against references written apart from the code, and quick counts against both."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.datasets.chat_template import ChatTemplate
from app.datasets.formats import parse_line
from app.datasets.template_segments import SAMPLE_TEXTS
from app.datasets.token_counter import TokenCounter
from app.datasets.types import ExampleError
from tests.support.service import BASE_MODEL

Segments = list[tuple[str, bool]]
"""The rendered text in order: each piece, and whether it is to be learnt."""
Turns = list[dict[str, Any]]


def chatml(turns: Turns) -> Segments:
    segments: Segments = []
    for turn in turns:
        learnt = turn["role"] == "assistant" and turn.get("weight") != 0
        segments += [
            (f"<|im_start|>{turn['role']}\n", False),
            (f"{turn['content']}<|im_end|>", learnt),
            ("\n", False),
        ]
    return segments


def bracketed(turns: Turns) -> Segments:
    segments: Segments = [("<|im_start|>", False)]
    for turn in turns:
        if turn["role"] == "user":
            segments.append((f"[INST] {turn['content'].strip()} [/INST]", False))
        elif turn["role"] == "assistant":
            segments.append((f" {turn['content']}<|im_end|>", turn.get("weight") != 0))
    return segments


def headed(turns: Turns) -> Segments:
    segments: Segments = [("<|endoftext|>", False)]
    for turn in turns:
        learnt = turn["role"] == "assistant" and turn.get("weight") != 0
        segments += [
            (f"<|im_start|>{turn['role']}<|im_start|>\n", False),
            (f"{turn['content'].strip()}<|im_end|>", learnt),
        ]
    return segments


TEMPLATES: dict[str, tuple[str, Callable[[Turns], Segments]]] = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        chatml,
    ),
    "bracketed": (
        "{{ bos_token }}{%- for m in messages %}"
        "{%- if m.role == 'user' %}\n[INST] {{ m.content | trim }} [/INST]"
        "{%- elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{%- endif %}{%- endfor %}",
        bracketed,
    ),
    "headed": (
        "<|endoftext|>{% for m in messages %}<|im_start|>{{ m.role }}<|im_start|>\n"
        "{{ m.content | trim }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant<|im_start|>\n{% endif %}",
        headed,
    ),
}
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=30)
CONTENT = (TEXT | st.sampled_from(SAMPLE_TEXTS)).filter(lambda text: bool(text.strip()))
CHATS = st.tuples(
    st.none() | CONTENT,
    st.lists(st.tuples(CONTENT, CONTENT, st.sampled_from([None, 0, 1])), min_size=1, max_size=3),
)


@pytest.fixture(scope="module")
def bases(base_models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The base's tokenizer, with each template."""
    folders: dict[str, Path] = {}
    for name, (source, _) in TEMPLATES.items():
        folder = folders[name] = tmp_path_factory.mktemp(name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(base_models_dir / BASE_MODEL / file, folder)
        (folder / "chat_template.jinja").write_text(source, "utf-8")
    return folders


def turns_of(chat: Any) -> Turns:
    system, exchanges = chat
    turns: Turns = [{"role": "system", "content": system}] if system else []
    for question, answer, weight in exchanges:
        turns.append({"role": "user", "content": question})
        turns.append(
            {"role": "assistant", "content": answer} | ({} if weight is None else {"weight": weight})
        )
    turns[-1].pop("weight", None)
    return turns


@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_and_mask_are_those_of_an_independent_reference(name: str, bases: dict[str, Path]) -> None:
    from transformers import AutoTokenizer

    ours, reference = ChatTemplate.load(bases[name]), AutoTokenizer.from_pretrained(bases[name])

    @given(CHATS)
    @hypothesis_settings(max_examples=150)
    def check(chat: Any) -> None:
        turns = turns_of(chat)
        for turn in turns:
            if turn["role"] == "assistant":  # white space at its start would join that of the prompt
                turn["content"] = turn["content"].lstrip()
        example = parse_line(json.dumps({"messages": turns}).encode())
        [tokenized] = ours.tokenize(example)
        plain = [{key: value for key, value in turn.items() if key != "weight"} for turn in turns]
        assert tokenized.input_ids == reference.apply_chat_template(plain, return_dict=False)
        segments = TEMPLATES[name][1](turns)
        text = "".join(part for part, _ in segments)
        encoded = reference(text, add_special_tokens=False, return_offsets_mapping=True)
        assert encoded["input_ids"] == tokenized.input_ids
        learnt = [is_learnt for part, is_learnt in segments for _ in part]
        # A token is learnt where its last character is.
        assert tokenized.target_mask == [
            learnt[end - 1] and end > start for start, end in encoded["offset_mapping"]
        ]

    check()


@pytest.mark.parametrize("name", [None, *TEMPLATES])
def test_counts_are_those_of_the_long_way(
    name: str | None, bases: dict[str, Path], base_models_dir: Path
) -> None:
    folder = bases[name] if name else base_models_dir / BASE_MODEL
    counter, template = TokenCounter.load(folder), ChatTemplate.load(folder)
    assert counter.counts_by_turn == (name != "bracketed")  # where turns begin with a control token

    @given(st.lists(CHATS, min_size=1, max_size=4))
    @hypothesis_settings(max_examples=150)
    def check(chats: Any) -> None:
        examples = [parse_line(json.dumps({"messages": turns_of(chat)}).encode()) for chat in chats]
        for example, counted in zip(examples, counter.count(examples), strict=True):
            assert not isinstance(counted, ExampleError)
            sequences = template.tokenize(example)
            assert (counted.tokens, counted.targets) == (
                sum(len(one.input_ids) for one in sequences),
                sum(sum(one.target_mask[1:]) for one in sequences),
            )

    check()


def test_other_formats_are_counted_too(base_models_dir: Path) -> None:
    folder = base_models_dir / BASE_MODEL
    counter, template = TokenCounter.load(folder), ChatTemplate.load(folder)
    pair = {
        "input": {"messages": [{"role": "user", "content": "Leeks?"}]},
        "preferred_output": [{"role": "assistant", "content": "Three, and they are fresh."}],
        "non_preferred_output": [{"role": "assistant", "content": "No."}],
    }
    preference = parse_line(json.dumps(pair).encode())
    completion = parse_line(b'{"prompt": "Leek", "completion": " soup"}')
    counted, short = counter.count([preference, completion])
    assert not isinstance(counted, ExampleError) and not isinstance(short, ExampleError)
    both = [template.tokenize_answer(chat) for chat in preference.chats()]  # pyright: ignore
    assert counted.tokens == sum(len(one.input_ids) for one in both)
    assert counted.targets == sum(sum(one.target_mask) for one in both)
    assert counted.longest == max(len(one.input_ids) for one in both)
    assert (short.tokens, short.targets) == (len(template.tokenize(completion)[0].input_ids), 2)


def test_a_template_that_cannot_be_taken_apart_is_rendered(bases: dict[str, Path], tmp_path: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bases["chatml"] / file, tmp_path)
    # It writes the number of turns first, so that nothing before and after a turn is fixed.
    source = "{{ messages | length }}" + TEMPLATES["chatml"][0]
    (tmp_path / "chat_template.jinja").write_text(source, "utf-8")
    counter, template = TokenCounter.load(tmp_path), ChatTemplate.load(tmp_path)
    assert not counter.counts_by_turn
    single = parse_line(b'{"messages": [{"role": "assistant", "content": "Three."}]}')
    [counted] = counter.count([single])
    with pytest.raises(ExampleError) as refused:
        template.tokenize(single)
    assert isinstance(counted, ExampleError)
    assert counted.code == refused.value.code == "answer_not_after_prompt"
