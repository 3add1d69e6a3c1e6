"""Every family of base models from end to end: trained over HTTP by a deployment, then served by vLLM.

For each family: a job's `full_valid_loss` against what transformers and PEFT compute from the adapter that is
downloaded; log-probabilities by vLLM, with two adapters and the base in one batch, against the same. The
families in `REFUSED`, and no others, must be refused by name when the job is created.
"""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx2
import openai
from openai import OpenAI

from app.core.settings import BaseModelEntry
from app.datasets.chat_template import ChatTemplate, TokenizedExample
from app.models.adapters.validation import module_shapes
from app.models.serving_support import has_experts
from app.models.token_mixing import read_config, token_mixing
from tests.bases.engine import Answer, ForkingEngine, Question
from tests.bases.reference import logprobs
from tests.support.examples import colours, lines_of
from tests.support.tiny_bases import WINDOW, write_tiny_base
from tests.support.waiting import wait_until
from workers.training.dataset import load_examples

KEY = "sk-toque-bases"
CONTEXT = 256
EXAMPLES = 16
VALIDATION_EXAMPLES = 40
"""So many that the rounding of a trainer that computes in bf16 hardly changes their mean loss."""
SERVED = 4
"""The number of prompts that vLLM is asked about, by the base and each adapter."""
LOSS_TOLERANCE = 0.005
"""The largest accepted relative difference of a job's `full_valid_loss` from the reference."""
LARGEST_DIFFERENCE = {"float32": 0.01, "bfloat16": 0.15}
"""The largest accepted difference of log-probabilities, in nats: in fp32 of any token, in bf16 of the mean,
as in the parity check."""
LEAST_EFFECT = {dtype: 2 * largest for dtype, largest in LARGEST_DIFFERENCE.items()}
"""The smallest accepted mean difference of log-probabilities, in nats, between the base and the last adapter:
with less, an engine that ignored the adapter could pass for one that serves it."""
REFUSED = {"gpt2"}
"""Families that vLLM serves without LoRA. All others are served, on a CPU, too."""
BF16_ONLY = {"qwen3_next", "qwen3_5"}
"""Families of which vLLM's CPU kernels compute a part in bf16 only."""
OTHER_WINDOWS = {"cohere2"}
"""Families whose windows are one token longer in vLLM than in transformers, so that they are compared on
prompts which no window cuts."""


@dataclass
class Result:
    """What was found of a family."""

    family: str
    architecture: str
    refused: str = ""
    """Why no job is created for it."""
    adapted: list[str] = field(default_factory=list[str])
    has_experts: bool = False
    layout: str = ""
    """The layout of its training batches."""
    loss: float | None = None
    reference_loss: float | None = None
    dtype: str = "float32"
    difference: float | None = None
    """Between vLLM's log-probabilities and the reference's: the largest in fp32, the mean in bf16."""
    effect: float | None = None
    """The mean difference between the base's and the adapters' log-probabilities, in the reference."""
    wrong: list[str] = field(default_factory=list[str])

    @property
    def is_trained(self) -> bool:
        """Whether the job succeeded with the reference's loss."""
        return self.loss is not None and not self.wrong

    @property
    def is_served(self) -> bool:
        """Whether vLLM's answers were the reference's."""
        return self.difference is not None and not self.wrong


def run(families: Iterable[str], folder: Path) -> Iterator[Result]:
    """Try the families one after the other."""
    bases = {family: write_tiny_base(family, folder / "bases" / family) for family in families}
    with deployed(folder, bases) as url, ForkingEngine() as engine:
        client = OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=120)
        http = httpx2.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=60)
        with client, http:
            for family, base in bases.items():
                config = json.loads((base / "config.json").read_text("utf-8"))
                result = Result(family, config["architectures"][0], dtype=_dtype(family))
                try:
                    _try(result, base, folder / family, client, http, engine)
                except Exception as error:
                    result.wrong.append(f"{type(error).__name__}: {error}")
                yield result


@contextmanager
def deployed(folder: Path, bases: dict[str, Path]) -> Generator[str]:
    """Run the API and a worker with all these bases in the catalogue; gives the API's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    entries = [BaseModelEntry(name=name, source=str(base), context=CONTEXT) for name, base in bases.items()]
    environment = os.environ | {
        "TOQUE_DATA_DIR": str(folder),
        "TOQUE_API_KEY": KEY,
        "TOQUE_PORT": str(port),
        "TOQUE_BASE_MODELS": json.dumps([entry.model_dump(mode="json") for entry in entries]),
        "TOQUE_POLL_SECONDS": "0.2",
        "HF_HUB_OFFLINE": "1",
    }
    toque = [sys.executable, "-m", "app.cli.main"]
    subprocess.run([*toque, "db", "upgrade"], env=environment, check=True, stdout=subprocess.DEVNULL)
    with (folder / "deployment.log").open("ab") as log:
        processes = [
            subprocess.Popen([*toque, part], env=environment, stdout=log, stderr=log)
            for part in ("api", "worker")
        ]
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        try:
            return httpx2.get(f"{url}/health/live").status_code == 200
        except httpx2.TransportError:
            return False

    try:
        wait_until(is_ready, "the API is ready", seconds=120)
        yield url
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(60)


def _try(
    result: Result, base: Path, folder: Path, client: OpenAI, http: httpx2.Client, engine: ForkingEngine
) -> None:
    folder.mkdir()
    result.has_experts = has_experts(module_shapes(base))
    job = _create(result, client)
    if job is None:
        return
    ended = wait_until(lambda: _ended(client, job.id), f"the job of {result.family} ends", seconds=300)
    events = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=1000)][::-1]
    if result.has_experts and "are not adapted" not in events[0]:
        result.wrong.append("its first event does not say that experts are not adapted")
    if result.has_experts != any("none of them in experts" in event for event in events):
        result.wrong.append("its trainer does not say whether experts are adapted")
    if ended.status != "succeeded":
        result.wrong.append(f"the job {ended.status}: {ended.error.message if ended.error else events[-1]}")
        return
    _check_record(http, ended.fine_tuned_model, result)
    points = list(client.fine_tuning.jobs.checkpoints.list(job.id))[::-1]
    adapters = [_download(http, point.fine_tuned_model_checkpoint, folder) for point in points]
    examples = _validation_examples(base, folder)
    reference = logprobs(base, adapters, [example.input_ids for example in examples])
    _compare_losses(result, points[-1].metrics.full_valid_loss, _loss(examples, reference[-1]))
    _check_effect(result, _mean(reference[0], reference[-1]))
    result.layout = token_mixing(read_config(base), max(len(each.input_ids) for each in examples)).layout
    longest = WINDOW if result.family in OTHER_WINDOWS else CONTEXT
    prompts = [example.input_ids[:longest] for example in examples[:SERVED]]
    answer = engine.ask(Question(str(base), [*map(str, adapters)], prompts, result.dtype))
    expected = [[found[: longest - 1] for found in each[:SERVED]] for each in reference]
    _compare(result, expected, answer)


def _compare_losses(result: Result, loss: float, expected: float) -> None:
    result.loss, result.reference_loss = loss, expected
    if abs(loss - expected) > LOSS_TOLERANCE * expected:
        result.wrong.append(f"full_valid_loss is {loss:.4f} instead of {expected:.4f}")


def _check_effect(result: Result, effect: float) -> None:
    result.effect = effect
    if not effect >= LEAST_EFFECT[result.dtype]:
        result.wrong.append(f"the adapter changes log-probabilities by {effect:.3g} only, on average")


def _dtype(family: str) -> str:
    return "bfloat16" if family in BF16_ONLY else "float32"


def _create(result: Result, client: OpenAI) -> Any:
    """Create a job of two epochs, which leaves two adapters; None if it is refused."""
    training = client.files.create(file=("train.jsonl", lines_of(colours(EXAMPLES))), purpose="fine-tune")
    validation = client.files.create(file=("valid.jsonl", _validation_lines()), purpose="fine-tune")
    numbers: Any = {"n_epochs": 2, "batch_size": 4, "learning_rate": 5e-3, "lora_rank": 8}
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": numbers}}
    try:
        job = client.fine_tuning.jobs.create(
            model=result.family,
            training_file=training.id,
            validation_file=validation.id,
            seed=1,
            method=method,
        )
    except openai.BadRequestError as error:
        result.refused = error.message
        if result.family not in REFUSED:
            result.wrong.append(f"it is refused: {error.message}")
        elif error.code != "unsupported_base_model" or result.architecture not in error.message:
            result.wrong.append(f"it is not refused by name: {error.message}")
        return None
    if result.family in REFUSED:
        result.wrong.append("it is not refused")
    return job


def _validation_lines() -> bytes:
    return lines_of(colours(EXAMPLES + VALIDATION_EXAMPLES)[EXAMPLES:])


def _validation_examples(base: Path, folder: Path) -> list[TokenizedExample]:
    path = folder / "valid.jsonl"
    path.write_bytes(_validation_lines())
    loaded = load_examples(path, ChatTemplate.load(base), CONTEXT)
    return [sequence for example in loaded for sequence in example.sequences]


def _ended(client: OpenAI, job_id: str) -> Any:
    job = client.fine_tuning.jobs.retrieve(job_id)
    return job if job.status in ("succeeded", "failed", "cancelled", "paused") else None


def _check_record(http: httpx2.Client, name: str, result: Result) -> None:
    record = http.get(f"/v1/models/{name}").json()
    result.adapted = sorted({module.rpartition(".")[2] for module in record["target_modules"]})
    if record["experts_adapted"] is not (False if result.has_experts else None):
        result.wrong.append("its record does not say whether experts are adapted")


def _download(http: httpx2.Client, name: str, folder: Path) -> Path:
    content = http.get(f"/v1/adapters/{name}/download").raise_for_status().content
    target = folder / name.replace(":", "-")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(target, filter="data")
    return target


def _loss(examples: list[TokenizedExample], found: list[list[float]]) -> float:
    """Return the mean loss of all the examples' targets."""
    return -fmean(
        logprobs[place - 1]
        for example, logprobs in zip(examples, found, strict=True)
        for place, is_target in enumerate(example.target_mask)
        if is_target
    )


def _compare(result: Result, reference: list[list[list[float]]], answer: Answer) -> None:
    if answer.failure:
        result.wrong.append(f"vLLM does not serve it: {answer.failure}")
        return
    pairs = list(zip(answer.logprobs, reference, strict=True))
    if result.dtype == "float32":
        result.difference = max(_largest(served, expected) for served, expected in pairs)
    else:
        result.difference = max(_mean(served, expected) for served, expected in pairs)
    if not result.difference <= LARGEST_DIFFERENCE[result.dtype]:
        base = _largest(*pairs[0])
        result.wrong.append(f"served log-probabilities differ by {result.difference:.3g} (base: {base:.3g})")


def _largest(left: list[list[float]], right: list[list[float]]) -> float:
    return max(abs(a - b) for a, b in _tokens(left, right))


def _mean(left: list[list[float]], right: list[list[float]]) -> float:
    return fmean(abs(a - b) for a, b in _tokens(left, right))


def _tokens(left: list[list[float]], right: list[list[float]]) -> Iterator[tuple[float, float]]:
    for one, other in zip(left, right, strict=True):
        yield from zip(one, other, strict=True)
