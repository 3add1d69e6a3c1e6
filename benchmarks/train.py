"""Our trainer against TRL's SFTTrainer: the same examples, base, LoRA, batch, schedule and seed.

    python -m benchmarks.train [--dataset FILE.jsonl] [--validation FILE.jsonl] [--base-model-dir DIR]

All run as children, alternately, `--repeats` times; ours through the worker's own protocol, in the layout
that it chooses for the base, and once more forced into the padded layout. TRL is set
up as an experienced user would on this machine: bf16, pre-tokenized, loss on the assistant's tokens, no
gradient checkpointing, batches grouped by length, fused AdamW. Speed is trained tokens over the time from
the first step's start to the last one's end, without loading and tokenizing on both sides; tokens over CPU
time are the figure to compare on a busy machine. The held-out loss of both adapters is computed by the same
plain code: transformers and PEFT in fp32, one example at a time. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
from rich.console import Console
from rich.table import Table

from app.core.settings import Settings
from app.datasets.chat_template import ChatTemplate
from app.models.catalogue import Catalogue
from app.models.token_mixing import TokenMixing
from workers.training.dataset import load_examples
from workers.training.protocol import Failed, Finished, Hyperparameters, Progress, Started, Step, TrainingSpec

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "app" / "demo"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", type=Path, help="training file (default: the demo's)")
    parser.add_argument(
        "--validation", type=Path, help="held-out file (default: the demo's, or a tenth of --dataset)"
    )
    settings = Settings()
    prepared = settings.base_model_dir(Catalogue(settings).engine_base)
    parser.add_argument("--base-model-dir", type=Path, default=prepared)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--lora-rank", type=int, default=16)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="toque-bench-") as folder:
        training, heldout = files(options, Path(folder))
        measured: dict[str, list[dict[str, Any]]] = {name: [] for name in TRAINERS}
        for repeat in range(options.repeats):
            for name, train in TRAINERS.items():
                spec = specification(options, training, Path(folder) / f"{name}-{repeat}", seed=repeat + 1)
                measured[name].append(result := train(spec))
                print(
                    f"{name} {repeat + 1}/{options.repeats}: {json.dumps(result)}",
                    file=sys.stderr,
                    flush=True,
                )
        for results in measured.values():
            adapters = [result["adapter"] for result in results]
            for result, loss in zip(
                results, heldout_losses(options.base_model_dir, heldout, adapters), strict=True
            ):
                result["heldout_loss"] = loss
    report(measured)


def files(options: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """The training and held-out files: given, the demo's, or a seeded tenth held out."""
    if options.dataset is None:
        return DEMO / "training.jsonl", options.validation or DEMO / "heldout.jsonl"
    if options.validation is not None:
        return options.dataset, options.validation
    lines = [line for line in options.dataset.read_bytes().split(b"\n") if line.strip()]
    random.Random(0).shuffle(lines)
    cut = max(1, len(lines) // 10)
    (folder / "heldout.jsonl").write_bytes(b"\n".join(lines[:cut]) + b"\n")
    (folder / "training.jsonl").write_bytes(b"\n".join(lines[cut:]) + b"\n")
    return folder / "training.jsonl", folder / "heldout.jsonl"


def specification(options: argparse.Namespace, training: Path, output: Path, seed: int) -> TrainingSpec:
    return TrainingSpec(
        job_id=output.name,
        base_model=options.base_model_dir.name,
        base_model_dir=str(options.base_model_dir),
        training_file=str(training.resolve()),
        validation_file=None,
        output_dir=str(output),
        resume_from=None,
        checkpoint_seconds=3600.0,
        seed=seed,
        halvings=0,
        hyperparameters=Hyperparameters(
            n_epochs=options.epochs,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            lora_rank=options.lora_rank,
            lora_alpha=2 * options.lora_rank,
            lora_dropout=0.0,
            warmup_ratio=0.05,
            weight_decay=0.0,
            max_grad_norm=1.0,
            max_length=2048,
        ),
    )


def train_toque(spec: TrainingSpec, *trainer: str) -> dict[str, Any]:
    """One job through the trainer child, as the worker does it."""
    began = time.monotonic()
    child = spawn(*(trainer or ("workers.training.trainer",)))
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(msgspec.json.encode(spec) + b"\n")
    child.stdin.close()
    clock = psutil.Process(child.pid).cpu_times
    first = last = cpu_first = cpu_last = 0.0
    path, tokens, loss = "", 0, 0.0
    for line in child.stdout:
        match msgspec.json.decode(line, type=Progress):
            case Started():
                first, cpu_first = time.monotonic(), sum(clock()[:2])
            case Step(metrics=metrics):
                last, cpu_last, loss = time.monotonic(), sum(clock()[:2]), metrics.train_loss or 0.0
            case Finished() as finished:
                path, tokens = finished.path, finished.trained_tokens
            case Failed(message=message):
                raise SystemExit(f"our trainer failed: {message}")
            case _:
                pass
    return outcome(child, tokens, last - first, cpu_last - cpu_first, path, began, loss)


def train_padded(spec: TrainingSpec) -> dict[str, Any]:
    """The same job in the padded layout."""
    return train_toque(spec, "benchmarks.train", "padded")


def padded_child() -> None:
    """Our trainer, which pads whatever base it is given."""
    from workers.training import model, trainer

    model.token_mixing = lambda *_: TokenMixing("padded", "the benchmark wants it")
    trainer.main()


def train_trl(spec: TrainingSpec) -> dict[str, Any]:
    """The same job through TRL, in a child of its own."""
    began = time.monotonic()
    child = spawn("benchmarks.train", "trl")
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(msgspec.json.encode(spec))
    child.stdin.close()
    result = json.loads(child.stdout.read().splitlines()[-1])
    seconds, cpu_seconds = result["seconds"], result["cpu_seconds"]
    return outcome(
        child, result["tokens"], seconds, cpu_seconds, spec.output_dir, began, result["train_loss"]
    )


TRAINERS = {"toque": train_toque, "padded": train_padded, "trl": train_trl}


def spawn(*arguments: str) -> subprocess.Popen[bytes]:
    # Waiting threads sleep in both: spinning ones would make any other load on the machine all we measure.
    quiet = {
        "GOMP_SPINCOUNT": "2000",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=os.environ | quiet,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if os.environ.get("VERBOSE") else subprocess.DEVNULL,
    )


def outcome(
    child: subprocess.Popen[bytes],
    tokens: int,
    seconds: float,
    cpu_seconds: float,
    adapter: str,
    began: float,
    train_loss: float,
) -> dict[str, Any]:
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{child.args} ended with {child.returncode}; VERBOSE=1 shows why")
    return {
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "tokens_per_cpu_second": tokens / cpu_seconds,
        "peak_memory_bytes": usage.ru_maxrss * 1024,
        "job_seconds": time.monotonic() - began,
        "train_loss": train_loss,
        "adapter": adapter,
    }


def trl_child() -> None:
    """Train the spec on stdin with SFTTrainer; the result is the last line of stdout."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    spec = msgspec.json.decode(sys.stdin.buffer.read(), type=TrainingSpec)
    hp = spec.hyperparameters
    folder = Path(spec.base_model_dir)
    examples = load_examples(Path(spec.training_file), ChatTemplate.load(folder), hp.max_length)
    sequences = [sequence for example in examples for sequence in example.sequences]
    columns: dict[str, list[list[int]]] = {
        "input_ids": [sequence.input_ids for sequence in sequences],
        "labels": [
            [
                token if target else -100
                for token, target in zip(sequence.input_ids, sequence.target_mask, strict=True)
            ]
            for sequence in sequences
        ],
    }

    class Clock(TrainerCallback):
        first = last = (0.0, 0.0)

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.first = time.monotonic(), time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.last = time.monotonic(), time.process_time()

    clock = Clock()
    steps = hp.n_epochs * -(-len(examples) // hp.batch_size)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16),
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict(columns),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=hp.lora_rank,
            lora_alpha=hp.lora_alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
        ),
        args=SFTConfig(
            output_dir=spec.output_dir,
            num_train_epochs=hp.n_epochs,
            per_device_train_batch_size=hp.batch_size,
            learning_rate=hp.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=-(-int(steps * hp.warmup_ratio * 1000) // 1000),
            weight_decay=hp.weight_decay,
            max_grad_norm=hp.max_grad_norm,
            max_length=hp.max_length,
            bf16=True,
            optim="adamw_torch_fused",
            gradient_checkpointing=False,
            train_sampling_strategy="group_by_length",
            packing=False,
            dataloader_pin_memory=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            seed=spec.seed,
            use_cpu=not torch.cuda.is_available(),
        ),
        callbacks=[clock],
    )
    trained = trainer.train()
    trainer.save_model(spec.output_dir)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    result = {
        "tokens": hp.n_epochs * sum(map(len, columns["input_ids"])),
        "seconds": clock.last[0] - clock.first[0],
        "cpu_seconds": clock.last[1] - clock.first[1],
        "train_loss": losses[-1] if losses else trained.training_loss,
    }
    print(json.dumps(result), flush=True)


def heldout_losses(base: Path, heldout: Path, adapters: list[str]) -> list[float]:
    """Mean loss per target token of each adapter, in a child so that its memory is not counted."""
    request = json.dumps({"base": str(base), "heldout": str(heldout), "adapters": adapters}).encode()
    child = spawn("benchmarks.train", "evaluate")
    answer, _ = child.communicate(request)
    return json.loads(answer.splitlines()[-1])


def evaluate_child() -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    request = json.loads(sys.stdin.buffer.read())
    examples = load_examples(Path(request["heldout"]), ChatTemplate.load(Path(request["base"])), 1 << 30)
    losses: list[float] = []
    for adapter in request["adapters"]:
        base = AutoModelForCausalLM.from_pretrained(request["base"], dtype=torch.float32)
        model = PeftModel.from_pretrained(base, adapter).eval()
        total, targets = 0.0, 0
        for sequence in (sequence for example in examples for sequence in example.sequences):
            ids = torch.tensor([sequence.input_ids])
            mask = torch.tensor(sequence.target_mask[1:])
            with torch.inference_mode():
                logits = model(input_ids=ids).logits[0, :-1][mask]
            total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:][mask], reduction="sum"))
            targets += int(mask.sum())
        losses.append(total / targets)
    print(json.dumps(losses), flush=True)


def report(measured: dict[str, list[dict[str, Any]]]) -> None:
    table = Table(
        "median (lowest to highest)", "tokens/s", "tokens/CPU s", "held-out loss", "peak MiB", "job, s"
    )
    middle: dict[str, dict[str, float]] = {}
    columns = {
        "tokens_per_second": (1, ".0f"),
        "tokens_per_cpu_second": (1, ".0f"),
        "heldout_loss": (1, ".4f"),
        "peak_memory_bytes": (2**20, ".0f"),
        "job_seconds": (1, ".0f"),
    }
    for name, results in measured.items():
        cells: list[str] = []
        middle[name] = {}
        for column, (unit, form) in columns.items():
            values = sorted(result[column] / unit for result in results)
            middle[name][column] = statistics.median(values)
            cells.append(f"{middle[name][column]:{form}} ({values[0]:{form}} to {values[-1]:{form}})")
        table.add_row(name, *cells)
    Console().print(table)

    ours, padded, theirs = middle["toque"], middle["padded"], middle["trl"]
    print(
        json.dumps(
            {
                "ratio": round(ours["tokens_per_second"] / theirs["tokens_per_second"], 3),
                "cpu_ratio": round(ours["tokens_per_cpu_second"] / theirs["tokens_per_cpu_second"], 3),
                "loss_ratio": round(ours["heldout_loss"] / theirs["heldout_loss"], 4),
                "memory_ratio": round(ours["peak_memory_bytes"] / theirs["peak_memory_bytes"], 3),
                "job_ratio": round(theirs["job_seconds"] / ours["job_seconds"], 3),
                "padded_ratio": round(padded["tokens_per_second"] / theirs["tokens_per_second"], 3),
                "padded_cpu_ratio": round(
                    padded["tokens_per_cpu_second"] / theirs["tokens_per_cpu_second"], 3
                ),
                "padded_loss_ratio": round(padded["heldout_loss"] / theirs["heldout_loss"], 4),
                **{
                    trainer: {name: round(value, 4) for name, value in found.items()}
                    for trainer, found in middle.items()
                },
                "repeats": len(measured["toque"]),
            }
        )
    )


if __name__ == "__main__":
    children = {"trl": trl_child, "padded": padded_child, "evaluate": evaluate_child}
    children.get(sys.argv[1] if len(sys.argv) > 1 else "", main)()
