"""How fast is the check of a dataset, and does it count right? `python -m benchmarks.validate`.

Makes a chat file (1 GB; `--megabytes`) of mixed lengths and scripts whose text does not repeat itself, every
thousandth line bad. Checks it in full, on every core, while the resident memory of all processes together is
watched. The reference reads the first 32 MB of its good lines with `datasets.load_dataset("json")`, and
counts each with `tokenizer.apply_chat_template`. The last line is one JSON object: `ratio` of the two
throughputs, `peak_rss_mib`, and `mismatches`, the examples of a 1 % sample whose counts of tokens differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from app.datasets.validation import PreparedBase, scan_file
from app.models.catalogue import Catalogue

REFERENCE_BYTES = 32 * 10**6
SAMPLED = 100
"""One in this many examples is compared with the reference tokenizer."""
BAD = (
    '{"messages": []}',
    "{",
    '{"messages": [{"role": "chef", "content": "x"}]}',
    "\\u0000",
    '{"a": 1, "a": 2}',
)
SYLLABLES = {
    "Latin": ["ka", "lo", "mi", "ster", "qua", "bre", "ung", "tion", "al", "ver", "zet", "on", "é", "ü"],
    "Cyrillic": ["ко", "ра", "ми", "ств", "пре", "дол", "ить", "ная", "зем", "ого", "ши", "щё"],
    "Greek": ["κα", "λο", "μι", "στρ", "ων", "προ", "ης", "δια", "τέ"],
    "Han": list("的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动"),
    "Arabic": ["ال", "مر", "كت", "اب", "ون", "ست", "فع", "ية"],
    "Devanagari": ["का", "मि", "रा", "णि", "त्य", "को", "भा"],
}


def make_file(path: Path, megabytes: int) -> int:
    """Writes the dataset; returns its lines."""
    chance = random.Random(7)
    words = {
        script: ["".join(chance.choices(parts, k=chance.randint(1, 4))) for _ in range(40_000)]
        for script, parts in SYLLABLES.items()
    }
    scripts, shares = list(words), [6, 1, 1, 1, 1, 1]
    lines = written = 0
    with path.open("w", encoding="utf-8", buffering=2**20) as file:
        while written < megabytes * 10**6:
            lines += 1
            if lines % 1000 == 0:
                line = chance.choice(BAD)
            else:
                vocabulary = words[chance.choices(scripts, shares)[0]]
                turns = [{"role": "system", "content": text(chance, vocabulary, 12)}] if lines % 3 else []
                for _ in range(chance.randint(1, 3)):
                    turns.append({"role": "user", "content": text(chance, vocabulary, 40)})
                    turns.append({"role": "assistant", "content": text(chance, vocabulary, 90)})
                line = json.dumps({"messages": turns}, ensure_ascii=lines % 50 == 0)
            written += len(line.encode()) + 1
            file.write(line + "\n")
    return lines


def text(chance: random.Random, vocabulary: list[str], mean: int) -> str:
    """Returns a text of words, numbers and punctuation; no two are alike."""
    words = chance.choices(vocabulary, k=max(1, int(chance.expovariate(1 / mean))))
    words.insert(chance.randint(0, len(words)), str(chance.randint(0, 10**9)))
    return " ".join(words) + chance.choice([".", "?", "!\n", " …", '"'])


def check(path: Path, folder: Path, out: Path) -> None:
    """Runs our side in a process of its own: the whole report, and the token counts of the sample's lines."""
    from app.datasets.report import build_report

    started = time.monotonic()
    base = PreparedBase("base", str(folder), 2048)
    scan = scan_file(path, base, processes=os.cpu_count() or 1)
    report = build_report(scan, base.name, base.context)
    seconds = time.monotonic() - started
    sample = dict(zip(scan.line_numbers[::SAMPLED], scan.lengths[::SAMPLED], strict=True))
    counts = report.counts.model_dump() | {"errors": report.errors}
    out.write_text(json.dumps({"seconds": seconds, "sample": sample, "counts": counts}), "utf-8")


def count_reference(path: Path, folder: Path, out: Path) -> None:
    """Runs the other side, which counts the same tokens by the libraries' own means."""
    os.environ |= {
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(out.parent / "hf"),
    }
    from datasets import load_dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    started = time.monotonic()
    dataset = load_dataset("json", data_files=str(path), split="train")
    tokens = sum(len(tokenizer.apply_chat_template(row["messages"], return_dict=False)) for row in dataset)
    out.write_text(json.dumps({"seconds": time.monotonic() - started, "tokens": tokens}), "utf-8")


def side(name: str, path: Path, folder: Path, out: Path) -> tuple[dict, float]:
    """Runs one side; returns what it wrote, and the peak memory of its processes in MiB."""
    import psutil

    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.validate", "--side", name, str(path), str(folder), str(out)]
    )
    watched, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        resident = 0
        try:
            for one in [watched, *watched.children(recursive=True)]:
                resident += one.memory_info().rss
        except psutil.NoSuchProcess:
            pass
        peak = max(peak, resident)
        time.sleep(0.05)
    assert process.returncode == 0, f"{name} failed"
    return json.loads(out.read_text("utf-8")), peak / 2**20


def count_mismatches(path: Path, folder: Path, sample: dict[str, int]) -> int:
    """Returns the number of the sample's examples whose count differs from transformers'."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    wrong = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if (counted := sample.get(str(number))) is not None:
                messages = json.loads(line)["messages"]
                wrong += counted != len(tokenizer.apply_chat_template(messages, return_dict=False))
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--side", nargs=4)
    arguments = parser.parse_args()
    if arguments.side:
        name, path, folder, out = arguments.side
        {"ours": check, "reference": count_reference}[name](Path(path), Path(folder), Path(out))
        return
    from app.core.settings import Settings

    settings = Settings()
    folder = settings.base_model_dir(Catalogue(settings).engine_base)
    with tempfile.TemporaryDirectory(prefix="toque-bench-") as room:
        path, good, out = Path(room) / "chat.jsonl", Path(room) / "good.jsonl", Path(room) / "out.json"
        lines = make_file(path, arguments.megabytes)
        print(f"{lines:,} lines, {path.stat().st_size / 1e6:,.0f} MB", flush=True)
        with path.open("rb") as file, good.open("wb") as kept:
            for number, line in enumerate(file, start=1):
                if kept.tell() > REFERENCE_BYTES:
                    break
                if number % 1000:
                    kept.write(line)
        ours, peak = side("ours", path, folder, out)
        speed = path.stat().st_size / 1e6 / ours["seconds"]
        print(f"ours: {speed:.1f} MB/s, {peak:.0f} MiB; {ours['counts']}", flush=True)
        reference, reference_peak = side("reference", good, folder, out)
        slow = good.stat().st_size / 1e6 / reference["seconds"]
        print(f"datasets and apply_chat_template: {slow:.1f} MB/s, {reference_peak:.0f} MiB", flush=True)
        mismatches = count_mismatches(path, folder, ours["sample"])
        print(f"{len(ours['sample']):,} examples compared", flush=True)
    summary = {
        "ratio": round(speed / slow, 1),
        "peak_rss_mib": round(peak, 1),
        "mismatches": mismatches,
        "mb_per_second": round(speed, 1),
        "reference_mb_per_second": round(slow, 1),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
