"""lm-evaluation-harness scores a fine-tuned model through the service, and again by transformers and PEFT.

Run it with a Python that has `lm_eval[api]`, torch, transformers and peft; nothing of this project is needed:

    OPENAI_BASE_URL=… OPENAI_API_KEY=… python -m tests.clients.lm_eval MODEL FOLDER_OF_THE_BASE

It exits with an error if the two disagree. PEFT computes in float32 and the service in bfloat16, which rounds
the result of each layer to 8 bits: a log-probability is a few hundredths of a nat off, in either direction.
"""

from __future__ import annotations

import argparse
import io
import os
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
import yaml

# Before torch is loaded, whose waiting threads would otherwise take the engine's cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from lm_eval import simple_evaluate

_HERE = Path(__file__).parent
_MOST_ACCURACY_DIFFERENCE = 1e-2
"""With 40 questions, not one may be answered otherwise, apart from ties."""
_TIE = 0.5
"""Nats: two answers of some 20 tokens that PEFT holds closer than this may change places by rounding."""
_MOST_MEAN_DIFFERENCE = 1e-2
"""Nats for each token, over all answers: neither side is biased."""
_MOST_ANSWER_DIFFERENCE = 0.05
"""Nats for each token, over the tokens of the answer where it is worst."""


@dataclass(frozen=True)
class Scores:
    """What one backend makes of the task."""

    accuracy: float
    loglikelihoods: list[list[float]]
    """Of the answers of each question, in the order of the file."""


def score(backend: str, **arguments: Any) -> Scores:
    """Runs the task with a backend of the harness."""
    task = yaml.safe_load((_HERE / "heron.yaml").read_text("utf-8"))
    task["dataset_kwargs"]["data_files"] = str(_HERE / "heron.jsonl")
    found: Any = simple_evaluate(
        model=backend, model_args=arguments, tasks=[task], log_samples=True, bootstrap_iters=0
    )
    samples = sorted(found["samples"][task["task"]], key=lambda sample: sample["doc_id"])
    answers = [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples]
    return Scores(found["results"][task["task"]]["acc,none"], answers)


def download_adapter(base_url: str, key: str, model: str, folder: Path) -> None:
    """Downloads the adapter as PEFT reads it."""
    url = f"{base_url}/adapters/{quote(model, safe='')}/download"
    answer = requests.get(url, headers={"authorization": f"Bearer {key}"}, timeout=60)
    answer.raise_for_status()
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        archive.extractall(folder, filter="data")


def lengths(base: str) -> list[list[int]]:
    """Returns how many tokens each answer of each question has."""
    import json

    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    with (_HERE / "heron.jsonl").open(encoding="utf-8") as lines:
        return [[len(tokenizer(each).input_ids) for each in json.loads(line)["choices"]] for line in lines]


def compare(name: str, served: Scores, trained: Scores, tokens: list[list[int]]) -> bool:
    """Prints how far a backend is from PEFT; returns whether they agree."""
    questions = list(zip(served.loglikelihoods, trained.loglikelihoods, tokens, strict=True))
    differences = [(a - b) / length for question in questions for a, b, length in zip(*question, strict=True)]
    worst = max(map(abs, differences))
    mean = sum(differences) / len(differences)
    gaps = [max(theirs) - theirs[ours.index(max(ours))] for ours, theirs, _ in questions]
    ties = [gap for gap in gaps if 0 < gap <= _TIE]
    apart = abs(served.accuracy - trained.accuracy) - len(ties) / len(questions)
    print(
        f"{name}: accuracy {served.accuracy:.3f} (PEFT {trained.accuracy:.3f}; {len(ties)} ties), "
        f"{len(differences)} answers, difference for each token: mean {mean:+.4f}, worst {worst:.4f} nats"
    )
    return (
        max(gaps) <= _TIE
        and apart <= _MOST_ACCURACY_DIFFERENCE
        and abs(mean) <= _MOST_MEAN_DIFFERENCE
        and worst <= _MOST_ANSWER_DIFFERENCE
    )


def main() -> None:
    """Compares token ids in batches, and texts one by one, with PEFT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="a fine-tuned model of the service")
    parser.add_argument("base", help="the folder of its base model")
    options = parser.parse_args()
    base_url, key = os.environ["OPENAI_BASE_URL"].rstrip("/"), os.environ["OPENAI_API_KEY"]
    with tempfile.TemporaryDirectory() as folder:
        download_adapter(base_url, key, options.model, Path(folder))
        trained = score(
            "hf", pretrained=options.base, peft=folder, dtype="float32", device="cpu", batch_size=8
        )
    service = {
        "base_url": f"{base_url}/completions",
        "model": options.model,
        "tokenizer": options.base,
        "tokenizer_backend": "huggingface",
        "num_concurrent": 4,
    }
    tokens = lengths(options.base)
    agree = [
        compare("token ids", score("local-completions", batch_size=16, **service), trained, tokens),
        compare("texts", score("local-completions", tokenized_requests=False, **service), trained, tokens),
    ]
    if not all(agree):
        raise SystemExit("lm-eval's scores through the service are not those of PEFT")


if __name__ == "__main__":
    main()
