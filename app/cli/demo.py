"""`toque demo`: from a dataset to a custom model that answers, in a few minutes, on this machine."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from app.cli.configuration import read_settings
from app.cli.output import fail, stderr, stdout
from app.cli.progress import TrainingBar, follow
from app.demo.contest import Candidate, Result, run_candidate
from app.demo.dataset import (
    HELDOUT_FILE,
    TRAINING_FILE,
    choose_examples,
    exemplified_turns,
    guided_turns,
    load_questions,
)
from app.demo.service import ServiceProcess, running_service

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob

GUIDED_EXAMPLES = 8
MOST_EXAMPLES = 41
"""As many as the base model's context holds."""
EPOCHS = 3
SEED = 7
SHOWN_QUESTIONS = 3


def demo(
    data_dir: Annotated[
        Path | None,
        typer.Option(
            file_okay=False, show_default="a temporary folder", help="Keep everything here afterwards."
        ),
    ] = None,
) -> None:
    """Train a custom model on the demo's data, and hold it against prompting.

    Example: toque demo
    """
    started = time.monotonic()
    settings = read_settings()
    with tempfile.TemporaryDirectory(prefix="toque-demo-") as temporary:
        folder = (data_dir or Path(temporary)).absolute()
        with running_service(settings, folder) as service, service.client() as client:
            _title(f"0. toque serve on {service.address} (its log: {service.log})")
            _await_ready(service)
            _title("1. A dataset goes in, a custom model comes out")
            job = _train(client, settings.engine_base.name)
            assert job.fine_tuned_model is not None
            assert job.finished_at is not None
            _title("2. The same held-out questions to each")
            results = _compare(client, job.model, job.fine_tuned_model)
        base, guided, exemplified, tuned = results
        prompted = max(guided, exemplified, key=lambda result: result.score)
        _title("3. What came out")
        _print_table(results)
        _print_answers(results)
        wins = tuned.score > max(base.score, prompted.score)
        stdout.print(_verdict(base, prompted, tuned))
        summary = {
            "n": len(tuned.answers),
            "base": round(base.score, 4),
            "prompted": round(prompted.score, 4),
            "tuned": round(tuned.score, 4),
            "intervals": {
                result.candidate.name: [round(end, 4) for end in result.interval] for result in results
            },
            "model": job.fine_tuned_model,
            "trained_tokens": job.trained_tokens,
            "train_seconds": job.finished_at - job.created_at,
            "total_seconds": round(time.monotonic() - started, 1),
        }
    sys.stdout.write(json.dumps(summary) + "\n")
    if not wins:
        raise typer.Exit(1)


def _await_ready(service: ServiceProcess) -> None:
    try:
        with stderr.status("starting API, worker and engine …") as status:
            service.await_ready(lambda waiting_for: status.update(f"starting: {waiting_for}"))
    except RuntimeError as error:
        fail(str(error))


def _train(client: OpenAI, base_model: str) -> FineTuningJob:
    """Upload, job, progress: what any script for OpenAI's API does."""
    files = [client.files.create(file=path, purpose="fine-tune") for path in (TRAINING_FILE, HELDOUT_FILE)]
    for file in files:
        stdout.print(f"uploaded {file.filename} ({file.bytes:,} bytes) as {file.id}")
    job = client.fine_tuning.jobs.create(
        model=base_model,
        training_file=files[0].id,
        suffix="larkspoon",
        seed=SEED,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": EPOCHS}}},
    )
    with TrainingBar() as bar:
        outcome = follow(client, job, None, bar.show)
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)
    job = outcome.job
    stdout.print(f"trained {job.fine_tuned_model} on {job.trained_tokens:,} tokens")
    return job


def _compare(client: OpenAI, base_model: str, fine_tuned_model: str) -> list[Result]:
    questions = load_questions(HELDOUT_FILE)
    training = load_questions(TRAINING_FILE)
    few, many = choose_examples(training, GUIDED_EXAMPLES), choose_examples(training, MOST_EXAMPLES)
    candidates = [
        Candidate("base", base_model, lambda question: question.turns),
        Candidate("guided", base_model, lambda question: guided_turns(question, few)),
        Candidate("examples", base_model, lambda question: exemplified_turns(question, many)),
        Candidate("tuned", fine_tuned_model, lambda question: question.turns),
    ]
    columns = (TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results: list[Result] = []
    with Progress(*columns, console=stderr) as progress:
        for candidate in candidates:
            task = progress.add_task(candidate.name, total=len(questions))
            results.append(
                run_candidate(client, candidate, questions, lambda task=task: progress.advance(task))
            )
    return results


def _print_table(results: list[Result]) -> None:
    table = Table()
    table.add_column("")
    for heading in ("exact match", "95 % interval", "tokens in", "tokens out", "median latency"):
        table.add_column(heading, justify="right")
    names = {
        "base": "base alone",
        "guided": f"base + style guide + {GUIDED_EXAMPLES} examples",
        "examples": f"base + {MOST_EXAMPLES} examples",
        "tuned": "fine-tuned",
    }
    for result in results:
        low, high = result.interval
        table.add_row(
            names[result.candidate.name],
            f"{result.score:.1%}",
            f"{low:.1%} to {high:.1%}",
            f"{result.prompt_tokens:.0f}",
            f"{result.completion_tokens:.0f}",
            f"{result.median_seconds:.2f} s",
        )
    stdout.print(table, width=110)


def _print_answers(results: list[Result]) -> None:
    """A few questions with every candidate's whole answer."""
    questions = load_questions(HELDOUT_FILE)
    for position in range(0, len(questions), -(-len(questions) // SHOWN_QUESTIONS)):
        stdout.print(Text.assemble("\n", ("customer  ", "bold"), questions[position].turns[-1]["content"]))
        for result in results:
            answer = result.answers[position]
            mark = ("✓ ", "green") if answer.correct else ("✗ ", "red")
            stdout.print(
                Text.assemble((f"{result.candidate.name:<10}", "bold"), mark, answer.text), soft_wrap=True
            )


def _verdict(base: Result, prompted: Result, tuned: Result) -> str:
    """One plain sentence."""
    n, best = len(tuned.answers), max(base, prompted, key=lambda result: result.score)
    scores = (
        f"on {n} held-out questions it gets {tuned.score:.0%} exactly right, "
        f"the base model {base.score:.0%} alone and {prompted.score:.0%} with the better of two prompts"
    )
    if tuned.interval[0] > best.interval[1]:
        return f"\nVerdict: fine-tuning is worth it here: {scores}."
    if tuned.score > best.score:
        return f"\nVerdict: fine-tuning looks better, but {n} questions do not settle it: {scores}."
    return f"\nVerdict: you do not need fine-tuning here: {scores}."


def _title(text: str) -> None:
    stdout.print(Text(f"\n{text}", style="bold"))
