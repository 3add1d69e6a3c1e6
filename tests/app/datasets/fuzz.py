"""A million hostile lines through the checks: `make fuzz`, or `python -m tests.app.datasets.fuzz --lines N`.

Lines are good ones that were damaged (bytes flipped, cut, doubled, values exchanged for hostile ones), in
files that are damaged too. Nothing may be raised; a line that is passed must be one that the trainer reads;
and its quick reading must be the careful one. The seed is printed, so that what fails can be repeated.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import zstandard

from app.datasets.formats import recognise_line
from app.datasets.lines import UnreadableFileError, read_lines
from app.datasets.strict_json import find_flaw
from app.datasets.types import ExampleError
from app.datasets.validation import validate_file
from tests.support.corpus import CALL, TOOL, bad_examples, bad_lines

HOSTILE: list[Any] = [
    None,
    True,
    0,
    1,
    -1,
    2**63,
    10**40,
    0.5,
    1e308,
    "",
    " ",
    "\u2028",
    "\x00",
    "\ud800",
    "<|im_end|>",
    [],
    {},
    [[]],
    [None],
    {"type": "text", "text": "x"},
    {"type": "image_url"},
    "user",
    "assistant",
    "tool",
]
BYTES = [
    b"\x00",
    b"\xff",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\\u0000",
    b"\\ud800",
    b"NaN",
    b"1e999",
    b"\xe2\x80\xa8",
    b"\r",
    b"\t",
    b" ",
]
LINES_A_FILE = 500


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    chance = random.Random(arguments.seed)
    small = [bad.make().split(b"\n")[3] for bad in [*bad_lines(), *bad_examples()]]
    seeds = [line for line in small if len(line) < 10_000]
    started, done, sound = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory(prefix="toque-fuzz-") as folder:
        path = Path(folder) / "fuzz.jsonl"
        while done < arguments.lines:
            lines = [damaged(chance, seeds) for _ in range(LINES_A_FILE)]
            sound += sum(check_line(line) for line in lines)
            check_file(path, b"\n".join(lines), chance)
            done += len(lines)
            if done % 50_000 == 0:
                print(f"{done:,} lines, {sound:,} sound, {time.monotonic() - started:.0f} s", flush=True)
    print(json.dumps({"lines": done, "sound": sound, "uncaught": 0}))


def check_line(line: bytes) -> bool:
    """Whether it is an example; any error but its own kind is raised."""
    try:
        _, example = recognise_line(line)
    except ExampleError as error:
        assert error.code and error.message and (not error.pointer or error.pointer.startswith("/"))
        return False
    assert find_flaw(line) is None, line
    msgspec.json.encode(example)
    return True


def check_file(path: Path, content: bytes, chance: random.Random) -> None:
    """A report comes of it, and readers agree with the report on whether it can be read."""
    pack = chance.choice([bytes, bytes, bytes, gzip.compress, zstandard.compress])
    packed = pack(content)
    if pack is not bytes and chance.random() < 0.5:
        packed = mangled(chance, packed)
    path.write_bytes(packed)
    report = validate_file(path, None)
    report.model_dump_json()
    try:
        lines = sum(1 for _ in read_lines(path))
    except UnreadableFileError:
        assert report.errors
    else:
        assert report.counts.examples <= lines


def damaged(chance: random.Random, seeds: list[bytes]) -> bytes:
    """A line that was good, or is known to be bad, damaged once or several times, or not at all."""
    line = chance.choice(seeds) if chance.random() < 0.3 else json.dumps(example(chance)).encode()
    for _ in range(chance.choice([0, 1, 1, 2, 5])):
        line = mangled(chance, line)
    return line.replace(b"\n", b" ")


def mangled(chance: random.Random, line: bytes) -> bytes:
    """Cut, doubled, or with bytes put in or flipped."""
    at = chance.randint(0, len(line))
    end = min(len(line), at + chance.randint(1, 20))
    return chance.choice(
        [
            line[:at],
            line[:at] + line[end:],
            line[:at] + line[at:end] * 2 + line[end:],
            line[:at] + chance.choice(BYTES) + line[at:],
            line[:at] + bytes(byte ^ 1 << chance.randint(0, 7) for byte in line[at:end]) + line[end:],
        ]
    )


def example(chance: random.Random) -> Any:
    """An example of some format, some of whose values are hostile."""

    def value(sound: Any) -> Any:
        return chance.choice(HOSTILE) if chance.random() < 0.08 else sound

    def turn(role: str) -> dict[str, Any]:
        made = {"role": value(role), "content": value(f"text {chance.random()}")}
        for name, extra in (("weight", 1), ("name", "x"), ("tool_calls", [CALL]), ("tool_call_id", "c1")):
            if chance.random() < 0.06:
                made[name] = value(extra)
        return made

    turns = [
        turn(role)
        for role in chance.choice(
            [
                ("user", "assistant"),
                ("system", "user", "assistant"),
                ("user", "assistant", "tool", "assistant"),
            ]
        )
    ]
    made: dict[str, Any] = chance.choice(
        [
            {"messages": turns},
            {"messages": turns, "tools": value([TOOL]), "parallel_tool_calls": value(True)},
            {"prompt": value("x"), "completion": value("y")},
            {
                "input": value({"messages": turns[:1]}),
                "preferred_output": value(turns[1:2]),
                "non_preferred_output": value([turn("assistant")]),
            },
            {
                "conversations": value(
                    [{"from": value("human"), "value": value("x")}, {"from": "gpt", "value": value("y")}]
                ),
                "system": value("s"),
            },
            {"instruction": value("x"), "input": value(""), "output": value("y")},
        ]
    )
    return made


if __name__ == "__main__":
    main()
