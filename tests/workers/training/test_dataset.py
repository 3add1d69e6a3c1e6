from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.datasets.chat_template import ChatTemplate, TokenizedExample
from app.fine_tuning.packing import Limits
from app.fine_tuning.schedule import epoch_batches
from tests.support.examples import Lines, chat, colours, preference
from workers.training.dataset import (
    InvalidExampleError,
    TrainingExample,
    load_examples,
    micro_batches,
)
from workers.training.layouts.packed import pack

WIDE = Limits(tokens=1 << 20, targets=1 << 20)


def example(tokens: list[int], targets: int) -> TokenizedExample:
    return TokenizedExample(tokens, [False] * (len(tokens) - targets) + [True] * targets)


def test_lines_end_at_newlines_only(base_model_dir: Path, jsonl: Lines) -> None:
    path = jsonl([chat("one\u2028two", "red"), chat("three\u0085four", "blue")])
    path.write_bytes(path.read_bytes() + b"\n")  # an empty last line is no example

    assert len(load_examples(path, ChatTemplate.load(base_model_dir), 1000)) == 2


def test_a_too_long_example_is_named_with_its_length(base_model_dir: Path, jsonl: Lines) -> None:
    path = jsonl([*colours(4), chat("x" * 500, "red")])

    with pytest.raises(InvalidExampleError, match=r"Line 5 has 5\d\d tokens.*max_length \(200\)") as error:
        load_examples(path, ChatTemplate.load(base_model_dir), 200)
    assert error.value.line == 5


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{nonsense", "JSON"),
        (b'{"messages": []}', "no messages"),
        (b'{"prompt": "", "completion": "!"}', None),
    ],
)
def test_a_line_that_is_no_example_is_named(
    base_model_dir: Path, tmp_path: Path, line: bytes, words: str | None
) -> None:
    path = tmp_path / "training.jsonl"
    path.write_bytes(b'{"prompt": "Hello", "completion": " there"}\n' + line + b"\n")

    if words is None:
        assert len(load_examples(path, ChatTemplate.load(base_model_dir), 100)) == 2
    else:
        with pytest.raises(InvalidExampleError, match=f"Line 2 .*{words}"):
            load_examples(path, ChatTemplate.load(base_model_dir), 100)


def test_an_empty_file_is_refused(base_model_dir: Path, jsonl: Lines) -> None:
    with pytest.raises(InvalidExampleError, match="empty"):
        load_examples(jsonl([]), ChatTemplate.load(base_model_dir), 100)


def test_each_epoch_has_its_own_order_which_the_seed_alone_decides() -> None:
    batches = epoch_batches(10, 4, seed=7, epoch=1)

    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(number for batch in batches for number in batch) == list(range(10))
    assert batches == epoch_batches(10, 4, seed=7, epoch=1)
    assert batches != epoch_batches(10, 4, seed=7, epoch=2)
    assert batches != epoch_batches(10, 4, seed=8, epoch=1)
    # Literal, so that no Python version changes the order of a job that is resumed on it.
    assert batches == [[9, 6, 4, 3], [5, 7, 1, 2], [8, 0]]


def test_shared_tokens_are_computed_once_and_nothing_after_the_last_target() -> None:
    packed = pack([(example([1, 2, 3, 4, 5], 1),), (example([1, 2, 6, 7], 2),)])

    assert packed.shared == 2
    assert packed.input_ids.tolist() == [[1, 2, 3, 4, 6]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert packed.targets.tolist() == [5, 6, 7]
    assert packed.predicting.tolist() == [3, 1, 4]  # the token before each, which may be a shared one
    assert packed.query_rows.tolist()[0] == [2, 3]
    assert packed.key_rows.tolist()[0] == [0, 1, 2, 3]
    assert packed.own_places.tolist() == [0, 1, 2]


def test_equal_examples_still_have_a_token_of_their_own() -> None:
    packed = pack([(example([1, 2, 3], 2),), (example([1, 2, 3], 2),)])

    assert packed.targets.tolist() == [2, 3, 2, 3]
    assert packed.input_ids.tolist() == [[1, 2, 2]]
    assert packed.predicting.tolist() == [0, 1, 0, 2]


def test_one_example_shares_nothing() -> None:
    assert pack([(example([1, 2, 3], 1),)]).shared == 0


def test_batches_are_cut_where_they_would_exceed_a_limit() -> None:
    examples = [TrainingExample((example(list(range(length)), 1),)) for length in (50, 3, 4, 5, 3, 4)]

    assert len(list(micro_batches(examples, WIDE))) == 1
    by_tokens = list(micro_batches(examples, Limits(tokens=12, targets=100)))
    assert [len(micro_batch) for micro_batch in by_tokens] == [3, 2, 1]  # 50 tokens: alone, over the limit
    by_targets = list(micro_batches(examples, Limits(tokens=1000, targets=2)))
    assert [len(micro_batch) for micro_batch in by_targets] == [2, 2, 2]
    assert sum(len(micro_batch) for micro_batch in by_tokens) == 6


def test_answers_to_one_prompt_share_it_beside_other_pairs() -> None:
    one = (example([1, 2, 3, 4, 5], 2), example([1, 2, 3, 6, 7], 2))
    two = (example([1, 8, 9, 4], 1), example([1, 8, 9, 5], 1))
    packed = pack([one, two])

    assert packed.shared == 1
    # Of the second pair's other answer nothing but the token before its target is computed again.
    assert packed.input_ids.tolist() == [[1, 2, 3, 4, 6, 8, 9, 9]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 3, 1, 2, 2]]
    assert packed.targets.tolist() == [4, 5, 6, 7, 4, 5]
    assert packed.predicting.tolist() == [2, 3, 2, 4, 6, 7]
    assert packed.sequence.tolist() == [0, 0, 1, 1, 2, 3]
    assert packed.key_rows.tolist() == [[0, 1, 2, 3], [0, 1, 2, 4], [0, 5, 6, 6], [0, 5, 7, 7]]
    assert packed.own_places.tolist() == [0, 1, 2, 5, 6, 7, 10]


def test_a_pair_is_never_cut() -> None:
    pairs = [TrainingExample((example(list(range(n)), 1), example(list(range(n)), 2))) for n in (5, 3, 5, 3)]

    for limits in (Limits(tokens=1, targets=1), Limits(tokens=5, targets=100)):
        assert [len(micro_batch) for micro_batch in micro_batches(pairs, limits)] == [1, 1, 1, 1]
    by_tokens = micro_batches(pairs, Limits(tokens=12, targets=100))
    assert [[pair.length for pair in micro_batch] for micro_batch in by_tokens] == [[3, 3], [5], [5]]
    by_targets = micro_batches(pairs, Limits(tokens=1000, targets=6))
    assert [len(micro_batch) for micro_batch in by_targets] == [2, 2]


@pytest.mark.parametrize(
    ("method", "line", "words"),
    [
        ("supervised", preference("a?", "b", "c"), "preferred and a non-preferred.*'supervised' does not"),
        ("dpo", chat("a?", "b"), "one answer; the method 'dpo' learns from two"),
        ("dpo", {"prompt": "a", "completion": "b"}, "one answer; the method 'dpo' learns from two"),
        ("dpo", preference("a?", "b", "c" * 300), r"Line 2 has \d+ tokens, more than max_length"),
    ],
)
def test_a_line_of_another_method_is_named(
    base_model_dir: Path, jsonl: Lines, method: str, line: dict[str, Any], words: str
) -> None:
    good = chat("1?", "2") if method == "supervised" else preference("1?", "2", "3")
    with pytest.raises(InvalidExampleError, match=f"{words}") as error:
        load_examples(jsonl([good, line]), ChatTemplate.load(base_model_dir), 200, method)
    assert error.value.line == 2


def test_of_a_pair_only_the_answers_are_targets(base_model_dir: Path, jsonl: Lines) -> None:
    earlier = [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "CONTEXT"}]
    line = preference("two?", "YES", "NOT AT ALL")
    line["input"]["messages"] = [*earlier, *line["input"]["messages"]]
    [pair] = load_examples(jsonl([line]), ChatTemplate.load(base_model_dir), 1000, "dpo")

    parts = pair.sequences
    assert len(parts) == 2
    assert [sum(part.target_mask) for part in parts] == [3 + 1, 10 + 1]
    prompts = [part.input_ids[: part.target_mask.index(True)] for part in parts]
    assert prompts[0] == prompts[1]


def test_turns_of_weight_0_are_no_targets(base_model_dir: Path, jsonl: Lines) -> None:
    turns = [
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "WRONG", "weight": 0},
        {"role": "user", "content": "two?"},
        {"role": "assistant", "content": "RIGHT", "weight": 1},
    ]
    template = ChatTemplate.load(base_model_dir)
    [loaded] = load_examples(jsonl([{"messages": turns}]), template, 1000)

    [sequence] = loaded.sequences
    targets = pack([loaded.sequences]).targets.tolist()
    words = [token for token, learnt in zip(sequence.input_ids, sequence.target_mask, strict=True) if learnt]
    assert targets == words
    assert len(targets) == len("RIGHT") + 1  # bytes are tokens here; then the token that ends the turn
