"""What passes of a stream is what came, byte for byte, wherever the network cut it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.completions.event_stream import EventStream

WORD = b'data: {"choices":[{"index":0,"delta":{"content":"\\"usage\\": \xc3\xa9"}}]}\n\n'
NAMED = b'data: {"choices":[{"index":0,"logprobs":{"token":"usage"}}],"usage":null}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8}}\n\n'
DONE = b"data: [DONE]\n\n"


@given(
    st.lists(st.sampled_from([WORD, NAMED, b": comment\n\n", b'data: {"usage"\n\n']), max_size=5),
    st.lists(st.integers(1, 40), min_size=1),
    st.booleans(),
)
def test_any_cut_of_any_stream(events: list[bytes], cuts: list[int], hide: bool) -> None:
    stream = b"".join([*events, USAGE, DONE])
    reader, passed, at = EventStream(hide_usage=hide), b"", 0
    while at < len(stream):
        length = cuts[at % len(cuts)]
        passed += reader.forward(stream[at : at + length])
        at += length
    assert passed + reader.rest == b"".join([*events, b"" if hide else USAGE, DONE])
    assert reader.usage == (5, 3)


def test_an_event_waits_for_no_other() -> None:
    reader = EventStream(hide_usage=True)
    assert reader.forward(WORD) == WORD
    assert reader.forward(WORD + b"data: ") == WORD
    assert reader.forward(b"x") == b""
    assert reader.rest == b"data: x"


def test_a_chunk_with_choices_and_usage_stays() -> None:
    reader = EventStream(hide_usage=True)
    chunk = b'data: {"choices":[{}],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
    assert reader.forward(chunk) == chunk
    assert reader.usage == (1, 2)
