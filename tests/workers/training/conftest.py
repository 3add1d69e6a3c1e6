"""A tiny base model, made on the spot: two layers, a byte-level tokenizer, a ChatML template."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from openai import OpenAI

from app.core.settings import BaseModelEntry, Settings
from tests.conftest import training_bytes, wait_until
from workers.training.protocol import (
    Failed,
    Finished,
    Hyperparameters,
    Progress,
    Started,
    Step,
    Stopped,
    TrainingSpec,
)

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
COLOURS = ["red", "green", "blue", "white", "black"]
SYSTEM = "Say the colour of the thing."

Lines = Callable[..., Path]


@pytest.fixture(scope="session")
def base_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny"
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.1,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
            }
        )
    )
    (folder / "chat_template.jinja").write_text(CHATML)
    return folder


def chat(question: str, answer: str, *, system: str = SYSTEM, **last: Any) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer, **last},
        ]
    }


def preference(question: str, preferred: str, other: str, *, system: str = SYSTEM) -> dict[str, Any]:
    turns = chat(question, "", system=system)["messages"][:-1]
    return {
        "input": {"messages": turns},
        "preferred_output": [{"role": "assistant", "content": preferred}],
        "non_preferred_output": [{"role": "assistant", "content": other}],
    }


def opinions(count: int) -> list[dict[str, Any]]:
    """Pairs of unequal length, of which the shorter word is always preferred."""
    return [
        preference("x" * (number % 7) + f"thing {number}?", COLOURS[number % 5], "the colour of a thing")
        for number in range(count)
    ]


def lines_of(examples: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(example, ensure_ascii=False) + "\n" for example in examples).encode()


def colours(count: int) -> list[dict[str, Any]]:
    """Examples of unequal length that begin alike, as real ones do."""
    return [chat("x" * (number % 7) + f"thing {number}?", COLOURS[number % 5]) for number in range(count)]


@pytest.fixture
def jsonl(tmp_path: Path) -> Lines:
    def write(examples: list[dict[str, Any]], name: str = "training.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(lines_of(examples))
        return path

    return write


COMMAND = [sys.executable, "-m", "workers.training.trainer"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class Child:
    """A trainer process, spoken to as the worker does."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            COMMAND, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def train(self, spec: TrainingSpec, stop_after: int | None = None) -> list[Progress]:
        """What it says about the job; after the step `stop_after` (0: once it begins) it is asked to stop."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(msgspec.json.encode(spec) + b"\n")
        self.process.stdin.flush()
        said: list[Progress] = []
        while not said or not isinstance(said[-1], Finished | Stopped | Failed):
            line = self.process.stdout.readline()
            assert line, f"the trainer died: {self.process.wait()}"
            said.append(msgspec.json.decode(line, type=Progress))
            begins = isinstance(said[-1], Started) and stop_after == 0
            if begins or (isinstance(said[-1], Step) and said[-1].metrics.step == stop_after):
                self.process.send_signal(signal.SIGTERM)
        return said

    def close(self) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        code = self.process.wait(30)
        self.process.stdout.close()
        return code


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    """One for all tests, so it is warm in all but the first."""
    child = Child()
    yield child
    child.close()


@pytest.fixture
def spec(base_model_dir: Path, jsonl: Lines, tmp_path: Path) -> TrainingSpec:
    return TrainingSpec(
        job_id="ftjob-1",
        base_model="tiny",
        base_model_dir=str(base_model_dir),
        training_file=str(jsonl(colours(20))),
        validation_file=None,
        output_dir=str(tmp_path / "jobs" / "ftjob-1" / "1"),
        resume_from=None,
        checkpoint_seconds=3600.0,
        seed=42,
        halvings=0,
        hyperparameters=Hyperparameters(
            n_epochs=2,
            batch_size=4,
            learning_rate=1e-2,
            lora_rank=4,
            lora_alpha=8,
            lora_dropout=0.0,
            warmup_ratio=0.1,
            weight_decay=0.0,
            max_grad_norm=1.0,
            max_length=400,
        ),
    )


TINY = "tiny"
WORKER = [sys.executable, "-m", "workers.training.worker"]


@pytest.fixture
def settings(settings: Settings, base_model_dir: Path) -> Settings:
    tiny = BaseModelEntry(name=TINY, source=str(base_model_dir), context=512)
    changes = {"base_models": [tiny], "heartbeat_seconds": 0.2, "lease_seconds": 2.0, "retry_seconds": 0.1}
    return settings.model_copy(update=changes)


@contextmanager
def run_worker(
    settings: Settings, tmp_path: Path, command: Sequence[str] = WORKER, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A real worker process; its log goes to worker.log."""
    environment = (
        os.environ
        | environment
        | {
            "TOQUE_DATA_DIR": str(settings.data_dir),
            "TOQUE_DATABASE_URL": settings.database_url,
            "TOQUE_STORAGE_DIR": str(settings.storage_root),
            "TOQUE_BASE_MODELS": f"[{settings.base_models[0].model_dump_json()}]",
            "TOQUE_HEARTBEAT_SECONDS": "0.2",
            "TOQUE_LEASE_SECONDS": str(settings.lease_seconds),
            "TOQUE_RETRY_SECONDS": str(settings.retry_seconds),
            "TOQUE_STORAGE_ROOM_BYTES": str(settings.storage_room_bytes),
            "TOQUE_POLL_SECONDS": "0.1",
            "TOQUE_TRAINING_THREADS": "1",
        }
    )
    with (tmp_path / "worker.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stderr=log)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                code = process.wait(timeout=30)
                crashing = "TOQUE_CRASH_AT" in environment  # it may be about to kill itself
                assert code == 0 or (crashing and code == -signal.SIGKILL), (
                    tmp_path / "worker.log"
                ).read_text()


def create(client: OpenAI, content: bytes | None = None, method: str = "supervised", **parameters: Any):
    content = content or (lines_of(opinions(24)) if method == "dpo" else training_bytes(24))
    file = client.files.create(file=("train.jsonl", content), purpose="fine-tune")
    hyperparameters = {"n_epochs": 2, "batch_size": 4} | parameters.pop("hyperparameters", {})
    parameters = {"model": TINY, "seed": 1} | parameters
    settings: Any = {"type": method, method: {"hyperparameters": hyperparameters}}
    return client.fine_tuning.jobs.create(training_file=file.id, method=settings, **parameters)


def ended(client: OpenAI, job_id: str):
    def look():
        job = client.fine_tuning.jobs.retrieve(job_id)
        return job if job.status in ("succeeded", "failed", "cancelled") else None

    return wait_until(look, f"{job_id} ends", seconds=120)


def trainer_of(worker: subprocess.Popen[bytes]) -> psutil.Process:
    def find() -> psutil.Process | None:
        children = psutil.Process(worker.pid).children()
        return next((child for child in children if "workers.training.trainer" in child.cmdline()), None)

    return wait_until(find, "the trainer starts")
