"""`toque demo`: trains, compares and promotes a model on this machine, in a few minutes."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.text import Text

from app.cli.catalogue import read_catalogue
from app.cli.client import list_objects, post_object
from app.cli.compare_report import answer_or_error, print_comparison
from app.cli.comparison_progress import await_comparison
from app.cli.job_progress import TrainingBar, follow
from app.cli.output import fail, stderr, stdout
from app.cli.promote import ask_gate, print_promotion
from app.cli.settings import read_settings
from app.core.control_characters import visible
from app.demo.demonstration import Demonstration
from app.demo.house_style import HOUSE_STYLE
from app.demo.kitchen.calls import KITCHEN
from app.demo.service import ServiceProcess, running_service

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob

SEED = 7
SHOWN_QUESTIONS = 3


def demo(
    tools: Annotated[
        bool, typer.Option("--tools", help="Show function calls: a kitchen's timers, oven and shopping list.")
    ] = False,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            show_default="a temporary folder",
            help="Keep everything here afterwards, with a report to look at (report.html).",
        ),
    ] = None,
) -> None:
    """Train a custom model on the demo's data, compare it with prompting, and promote it if it is better.

    Example: toque demo --tools --data-dir toque-demo
    """
    started = time.monotonic()
    shown = KITCHEN if tools else HOUSE_STYLE
    settings = read_settings()
    with tempfile.TemporaryDirectory(prefix="toque-demo-") as temporary:
        folder = (data_dir or Path(temporary)).absolute()
        with running_service(settings, folder) as service, service.client() as client:
            _title(f"0. toque serve on {service.address} (its log: {service.log})")
            _await_ready(service)
            _title("1. A dataset goes in, a custom model comes out")
            base = read_catalogue(settings).engine_base.name
            job = _train(client, base, shown)
            _title("2. The same held-out questions to the base model, to prompts, and to the custom model")
            comparison = _compare(client, base, job, shown)
            _print_answers(list_objects(client, f"/comparisons/{comparison['id']}/items"))
            if data_dir is not None:
                report = client.get(f"/comparisons/{comparison['id']}/report", cast_to=str)
                (folder / "report.html").write_text(report, "utf-8")
                stdout.print(f"\nThe report: {folder / 'report.html'}")
            _title(f"3. The gate: may {shown.alias} point to it?")
            promotion = _promote(client, job, comparison, shown)
        summary = _summary(job, comparison, promotion)
    summary["total_seconds"] = round(time.monotonic() - started, 1)
    sys.stdout.write(json.dumps(summary) + "\n")
    if not promotion["promoted"]:
        raise typer.Exit(1)


def _await_ready(service: ServiceProcess) -> None:
    try:
        with stderr.status("starting API, worker and engine …") as status:
            service.await_ready(lambda waiting_for: status.update(f"starting: {waiting_for}"))
    except RuntimeError as error:
        fail(str(error))


def _train(client: OpenAI, base_model: str, shown: Demonstration) -> FineTuningJob:
    """Uploads the data, creates a job and follows it, like any script for OpenAI's API."""
    file = client.files.create(file=shown.training_file, purpose="fine-tune")
    stdout.print(f"uploaded {file.filename} ({file.bytes:,} bytes) as {file.id}")
    job = client.fine_tuning.jobs.create(
        model=base_model,
        training_file=file.id,
        suffix=shown.suffix,
        seed=SEED,
        method=cast("Any", {"type": "supervised", "supervised": {"hyperparameters": shown.hyperparameters}}),
    )
    with TrainingBar() as bar:
        outcome = follow(client, job, None, bar.show)
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)
    job = outcome.job
    stdout.print(f"trained {job.fine_tuned_model} on {job.trained_tokens:,} tokens")
    return job


def _compare(client: OpenAI, base_model: str, job: FineTuningJob, shown: Demonstration) -> dict[str, Any]:
    """Compares the base model alone, with the best prompts that we could write, and the custom model."""

    def upload(name: str, content: bytes) -> str:
        return client.files.create(file=(name, content), purpose="evals").id

    request = {
        "name": shown.title,
        "file": client.files.create(file=shown.heldout_file, purpose="evals").id,
        "model": base_model,
        "grader": shown.grader,
        "max_tokens": shown.max_answer_tokens,
        "seed": SEED,
        "candidates": [
            {"type": "base", "name": "base alone"},
            *shown.prompted(upload),
            {"type": "model", "name": "fine-tuned", "model": job.fine_tuned_model},
        ],
    }
    comparison, exit_code = await_comparison(client, post_object(client, "/comparisons", request), None)
    if exit_code:
        raise typer.Exit(exit_code)
    print_comparison(comparison)
    return comparison


def _print_answers(items: list[dict[str, Any]]) -> None:
    """Prints a few questions with every candidate's whole answer."""
    for item in items[:: -(-len(items) // SHOWN_QUESTIONS)]:
        stdout.print(Text.assemble("\n", ("customer  ", "bold"), visible(item["messages"][-1]["content"])))
        for answer in item["answers"]:
            mark = ("✓ ", "green") if answer["score"] == 1 else ("✗ ", "red")
            said = visible(answer_or_error(answer)).strip().replace("\n", "  ")
            stdout.print(Text.assemble((f"{answer['candidate']:<34}", "bold"), mark, said), soft_wrap=True)


def _promote(
    client: OpenAI, job: FineTuningJob, comparison: dict[str, Any], shown: Demonstration
) -> dict[str, Any]:
    request = {
        "model": job.fine_tuned_model,
        "comparison": comparison["id"],
        "rules": shown.rules,
        "reason": "the demo's gate",
    }
    promotion = ask_gate(client, shown.alias, request)
    print_promotion(promotion)
    return promotion


def _summary(job: FineTuningJob, comparison: dict[str, Any], promotion: dict[str, Any]) -> dict[str, Any]:
    """Returns the result for machines, which is the last line of the output."""
    scores = {each["type"]: each["score"] for each in comparison["candidates"]}
    prompted = [each["score"] for each in comparison["candidates"] if each["type"] == "few_shot"]
    assert job.finished_at is not None
    return {
        "n": comparison["questions"],
        "base": round(scores["base"], 4),
        "prompted": round(max(prompted), 4),
        "tuned": round(scores["model"], 4),
        "intervals": {
            each["name"]: [round(each["interval"][end], 4) for end in ("low", "high")]
            for each in comparison["candidates"]
        },
        "verdict": comparison["verdict"]["code"],
        "comparison": comparison["id"],
        "promoted": promotion["promoted"],
        "alias": promotion["alias"],
        "model": job.fine_tuned_model,
        "trained_tokens": job.trained_tokens,
        "train_seconds": job.finished_at - job.created_at,
    }


def _title(text: str) -> None:
    stdout.print(Text(f"\n{text}", style="bold"))
