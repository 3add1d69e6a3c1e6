"""What is shown as learned is exactly what the trainer learns, for every kind of chat template."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from app.console.datasets.learned import Reading, list_tokens, read_as_learned, read_plainly
from app.datasets.chat_template import ChatTemplate
from app.datasets.formats import parse_line
from app.datasets.types import Example, ExampleError, PreferenceExample
from app.fine_tuning.methods import METHODS
from tests.support.chat_templates import TEMPLATES, TemplateKind
from tests.support.conversations import conversations

EVERYTHING = 10**9


def template_of(kind: TemplateKind) -> ChatTemplate:
    return ChatTemplate(kind.source, kind.tokenizer(), kind.special_tokens(), kind.variables)


def check(template: ChatTemplate, example: Example, readings: list[Reading]) -> None:
    method = METHODS["dpo" if isinstance(example, PreferenceExample) else "supervised"]
    sequences = method.tokenize(template, example)
    assert len(readings) == len(sequences)
    for reading, sequence in zip(readings, sequences, strict=True):
        assert reading.spelled is not None
        assert reading.spelled.tokens == sequence
        targets = sum(sequence.target_mask[1:])
        assert (reading.tokens, reading.learned) == (len(sequence.input_ids), targets)
        assert sum(turn.tokens or 0 for turn in reading.turns) == len(sequence.input_ids)
        assert sum(turn.learned for turn in reading.turns) == targets
        shown = "".join(run.text for turn in reading.turns for run in turn.runs)
        assert shown == reading.spelled.text
        tokens = list_tokens(template, reading.spelled, EVERYTHING)
        assert sum(token.count for token in tokens) == len(sequence.input_ids)
        runs = "".join(run.text for turn in reading.turns for run in turn.runs if run.is_learned)
        assert "".join(token.text for token in tokens if token.is_learned) == runs


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_token_is_shown_as_it_is_learned(name: str) -> None:
    template = template_of(TEMPLATES[name])

    @hypothesis_settings(max_examples=40)
    @given(conversations(TEMPLATES[name]))
    def check_one(line: dict[str, Any]) -> None:
        example = parse_line(json.dumps(line).encode())
        try:
            METHODS["supervised"].tokenize(template, example)
        except ExampleError as error:
            with pytest.raises(ExampleError) as refused:
                read_as_learned(template, example, most_characters=EVERYTHING)
            assert refused.value.code == error.code
            return
        check(template, example, read_as_learned(template, example, most_characters=EVERYTHING))

    check_one()


def chat(*turns: str, **fields: Any) -> Example:
    roles = ("user", "assistant") * len(turns)
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    return parse_line(json.dumps({"messages": messages} | fields).encode())


def test_a_pair_has_two_texts_with_the_same_beginning() -> None:
    template = template_of(TEMPLATES["thinking"])
    line = {
        "input": {"messages": [{"role": "user", "content": "Soup?"}]},
        "preferred_output": [{"role": "assistant", "content": "Leek."}],
        "non_preferred_output": [{"role": "assistant", "content": "No."}],
    }
    example = parse_line(json.dumps(line).encode())
    readings = read_as_learned(template, example, most_characters=EVERYTHING)
    check(template, example, readings)
    assert readings[0].turns[0] == readings[1].turns[0]
    assert [said(reading, 1) for reading in readings] == ["Leek.", "No."]


def said(reading: Reading, turn: int) -> str:
    return "".join(run.text for run in reading.turns[turn].runs if not run.is_template)


@pytest.mark.parametrize("word", ["u", "use", "i", "assistant", "<|im_end|>x"])
def test_a_turn_says_its_own_words_and_not_those_of_the_template(word: str) -> None:
    template = template_of(TEMPLATES["thinking"])
    readings = read_as_learned(template, chat(word, word), most_characters=EVERYTHING)
    [reading] = readings
    if not word.startswith("<|"):
        assert [said(reading, turn) for turn in range(2)] == [word, word]
    check(template, chat(word, word), readings)


def test_words_that_were_searched_for_are_marked() -> None:
    template = template_of(TEMPLATES["thinking"])
    [reading] = read_as_learned(template, chat("Soup?", "SOUP, soup."), words="soup", most_characters=100)
    assert [run.text for turn in reading.turns for run in turn.runs if run.is_marked] == [
        "Soup",
        "SOUP",
        "soup",
    ]
    [plain] = read_plainly(chat("Soup?", "Leek soup."), words="SOUP", most_characters=100)
    assert [run.text for turn in plain.turns for run in turn.runs if run.is_marked] == ["Soup", "soup"]


@given(st.integers(0, 60))
def test_a_long_text_is_cut_and_says_so(most: int) -> None:
    example = chat("Soup?", "Leek. " * 5)
    for readings in (
        read_plainly(example, most_characters=most),
        read_as_learned(template_of(TEMPLATES["thinking"]), example, most_characters=most),
    ):
        [reading] = readings
        shown = sum(len(run.text) for turn in reading.turns for run in turn.runs)
        assert shown <= most
        whole = reading.spelled.text if reading.spelled else "Soup?" + "Leek. " * 5
        assert shown + reading.more_characters == len(whole)


def test_without_a_base_turns_are_learned_or_not() -> None:
    line = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "weight": 0},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d"},
        ]
    }
    [reading] = read_plainly(parse_line(json.dumps(line).encode()), most_characters=100)
    assert [(run.text, run.is_learned) for turn in reading.turns for run in turn.runs] == [
        ("a", False),
        ("b", False),
        ("c", False),
        ("d", True),
    ]
    assert reading.tokens is None


@pytest.mark.parametrize(
    ("words", "text", "marked"),
    [
        ("STRASSE", "Die Straße, die STRASSE.", ["Straße", "STRASSE"]),
        ("straße", "Strasse", ["Strasse"]),
        ("s", "Maße", ["ß"]),
        ("istanbul", "in İstanbul: İSTANBUL, istanbul", ["istanbul"]),
        ("ab", "ABab", ["AB", "ab"]),
        ("ΣΟΦΟΣ", "ὁ σοφος", ["σοφος"]),
        ("soup", "Stew.", []),
    ],
)
def test_what_a_search_has_found_is_marked(words: str, text: str, marked: list[str]) -> None:
    [reading] = read_plainly(chat("Soup?", text), words=words, most_characters=EVERYTHING)
    assert [run.text for run in reading.turns[1].runs if run.is_marked] == marked
