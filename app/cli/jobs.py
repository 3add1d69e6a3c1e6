"""`toque jobs`: fine-tuning jobs."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.check import check_files
from app.cli.client import DEFAULT_BASE_URL, BaseUrl, connect, job_page, not_empty
from app.cli.files import upload_file
from app.cli.job_progress import Outcome, TrainingBar, follow
from app.cli.next_steps import next_steps
from app.cli.output import (
    AsJson,
    moment,
    print_fields,
    print_json,
    print_json_line,
    print_table,
    stderr,
    stdout,
)
from app.cli.training_options import training_options
from app.core.control_characters import visible
from app.fine_tuning.methods import DEFAULT_METHOD

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent

app = typer.Typer(no_args_is_help=True, help="Fine-tuning jobs.")

JobId = Annotated[str, typer.Argument(metavar="JOB_ID", show_default=False, callback=not_empty)]
Timeout = Annotated[
    float | None, typer.Option(min=0, show_default=False, help="Seconds to wait, then exit code 4.")
]
AUTO = "auto"
SplitShare = Annotated[
    float | None,
    typer.Option(min=0, max=0.5, show_default=False, help="The share of examples to hold out; default 0.1."),
]
SplitSeed = Annotated[int | None, typer.Option(min=0, show_default=False, help="Draws another hold-out.")]


@app.command()
@training_options
def create(
    training_file: Annotated[str, typer.Option(show_default=False, help="A file's id, or a path to upload.")],
    model: Annotated[
        str,
        typer.Option(
            show_default=False,
            help="Base model (see `toque models list`), or a fine-tuned one to continue from.",
        ),
    ],
    validation_file: Annotated[
        str | None,
        typer.Option(show_default=False, help="As --training-file, or `auto`: a hold-out of it."),
    ] = None,
    split_share: SplitShare = None,
    split_seed: SplitSeed = None,
    suffix: Annotated[
        str | None, typer.Option(show_default=False, help="Part of the new model's name.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, show_default=False)] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", show_default=False, help="May be given again.")
    ] = None,
    method: str = DEFAULT_METHOD,
    wait_for_end: Annotated[bool, typer.Option("--wait", help="Wait until the job ends.")] = False,
    timeout: Timeout = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    as_json: AsJson = False,
    **hyperparameters: Any,
) -> None:
    """Create a job; whatever is not given is chosen by the service.

    Example: toque jobs create --training-file train.jsonl --model smollm2-135m-instruct --wait
    """
    given = {name: value for name, value in hyperparameters.items() if value is not None}
    request: dict[str, Any] = {
        "model": model,
        "suffix": suffix,
        "seed": seed,
        "metadata": _pairs(metadata or []) or None,
        "method": {"type": method, method: {"hyperparameters": given}},
    }
    split = _split(validation_file, split_share, split_seed)
    with connect(base_url) as client:
        request["training_file"] = _file_id(client, training_file, "--training-file")
        if split is not None:
            request |= {"validation_file": AUTO, "extra_body": {"validation_split": split}}
        elif validation_file is not None:
            request["validation_file"] = _file_id(client, validation_file, "--validation-file")
        job = client.fine_tuning.jobs.create(
            **{name: value for name, value in request.items() if value is not None},
            # The client sends a request again when the connection drops: this keeps it one job.
            extra_headers={"Idempotency-Key": str(uuid.uuid4())},
        )
        if wait_for_end:
            stderr.print(f"Created job {job.id}: {job_page(base_url, job.id)}")
            _wait(client, job, timeout, as_json)
    _print_job(job, as_json)


@app.command()
@training_options
def check(
    training_file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True, show_default=False)
    ],
    base_model: Annotated[
        str, typer.Option(show_default=False, help="A base model that is prepared on this machine.")
    ],
    validation_file: Annotated[
        str | None, typer.Option(show_default=False, help="A path, or `auto`: a hold-out of FILE.")
    ] = None,
    split_share: SplitShare = None,
    split_seed: SplitSeed = None,
    seed: Annotated[int | None, typer.Option(min=0, show_default=False)] = None,
    method: str = DEFAULT_METHOD,
    as_json: AsJson = False,
    **hyperparameters: Any,
) -> None:
    """Say what a job would do, offline: tokens, steps, memory, time, and what it would refuse (exit code 1).

    Example: toque jobs check train.jsonl --base-model smollm2-135m-instruct --validation-file auto
    """
    check_files(
        training_file,
        base_model,
        validation_file,
        _split(validation_file, split_share, split_seed),
        method,
        hyperparameters,
        seed or 0,
        as_json,
    )


@app.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Newest jobs to show.")] = 20,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first.

    Example: toque jobs list --limit 5
    """
    with connect(base_url) as client:
        page = client.fine_tuning.jobs.list(limit=limit)
    if as_json:
        print_json(page.data)
    else:
        rows = [
            (job.id, job.status, job.model, job.fine_tuned_model, moment(job.created_at)) for job in page.data
        ]
        print_table(("ID", "STATUS", "MODEL", "FINE-TUNED MODEL", "CREATED"), rows)


@app.command()
def get(job_id: JobId, base_url: BaseUrl = DEFAULT_BASE_URL, as_json: AsJson = False) -> None:
    """Show one job.

    Example: toque jobs get ftjob-abc123
    """
    with connect(base_url) as client:
        job = client.fine_tuning.jobs.retrieve(job_id)
    _print_job(job, as_json)


@app.command()
def events(
    job_id: JobId,
    follow_events: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    timeout: Timeout = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    as_json: AsJson = False,
) -> None:
    """Show a job's log, oldest line first; followed, its exit code is the job's.

    Example: toque jobs events ftjob-abc123 --follow
    """
    with connect(base_url) as client:
        if follow_events:
            job = client.fine_tuning.jobs.retrieve(job_id)
            outcome = follow(client, job, timeout, lambda _, fresh: _print_events(fresh, as_json))
            raise typer.Exit(outcome.exit_code)
        log = list(client.fine_tuning.jobs.list_events(job_id, limit=1000))[::-1]
    if as_json:
        print_json(log)
    else:
        _print_events(log, as_json)


@app.command()
def cancel(job_id: JobId, base_url: BaseUrl = DEFAULT_BASE_URL, as_json: AsJson = False) -> None:
    """Cancel a job; its checkpoints stay.

    Example: toque jobs cancel ftjob-abc123
    """
    with connect(base_url) as client:
        job = client.fine_tuning.jobs.cancel(job_id)
    _print_job(job, as_json)


@app.command()
def pause(job_id: JobId, base_url: BaseUrl = DEFAULT_BASE_URL, as_json: AsJson = False) -> None:
    """Set a job aside; its worker takes another.

    Example: toque jobs pause ftjob-abc123
    """
    with connect(base_url) as client:
        job = client.fine_tuning.jobs.pause(job_id)
    _print_job(job, as_json)


@app.command()
def resume(job_id: JobId, base_url: BaseUrl = DEFAULT_BASE_URL, as_json: AsJson = False) -> None:
    """Let a paused job go on where it stopped.

    Example: toque jobs resume ftjob-abc123
    """
    with connect(base_url) as client:
        job = client.fine_tuning.jobs.resume(job_id)
    _print_job(job, as_json)


@app.command()
def wait(
    job_id: JobId, timeout: Timeout = None, base_url: BaseUrl = DEFAULT_BASE_URL, as_json: AsJson = False
) -> None:
    """Wait for a job; exit code 0 succeeded, 1 failed, 3 cancelled, 4 timed out.

    Example: toque jobs wait ftjob-abc123 --timeout 3600
    """
    with connect(base_url) as client:
        _wait(client, client.fine_tuning.jobs.retrieve(job_id), timeout, as_json)


@app.command()
def checkpoints(job_id: JobId, base_url: BaseUrl = DEFAULT_BASE_URL, as_json: AsJson = False) -> None:
    """List a job's checkpoints, newest first; each can be served.

    Example: toque jobs checkpoints ftjob-abc123
    """
    with connect(base_url) as client:
        found = list(client.fine_tuning.jobs.checkpoints.list(job_id, limit=1000))
    if as_json:
        print_json(found)
        return
    rows = [
        (
            checkpoint.step_number,
            checkpoint.fine_tuned_model_checkpoint,
            _loss(checkpoint.metrics.train_loss),
            _loss(checkpoint.metrics.full_valid_loss),
            moment(checkpoint.created_at),
        )
        for checkpoint in found
    ]
    print_table(("STEP", "MODEL", "TRAIN LOSS", "VALID LOSS", "CREATED"), rows)


def _wait(client: OpenAI, job: FineTuningJob, timeout: float | None, as_json: bool) -> None:
    with TrainingBar() as bar:
        outcome: Outcome = follow(client, job, timeout, bar.show)
    _print_job(outcome.job, as_json)
    if outcome.exit_code == 0 and not as_json and (commands := next_steps(outcome.job)):
        stderr.print("\nNext, ask the model, and compare it with its base model:")
        for command in commands:
            stderr.print(f"  {visible(command)}")
    raise typer.Exit(outcome.exit_code)


def _file_id(client: OpenAI, file: str, option: str) -> str:
    """Return the id of a file in the service; upload the file first if it is a local path."""
    path = Path(file)
    if path.is_file():
        uploaded = upload_file(client, path, "fine-tune")
        stderr.print(f"Uploaded {path} as {uploaded.id}")
        return uploaded.id
    if file.startswith("file-"):
        return file
    raise typer.BadParameter(
        f"'{file}' is neither a file here nor the id of an uploaded one (file-…)", param_hint=option
    )


def _split(validation_file: str | None, share: float | None, seed: int | None) -> dict[str, Any] | None:
    """Return how to hold out some examples; None if that was not asked for."""
    given = {name: value for name, value in (("share", share), ("seed", seed)) if value is not None}
    if validation_file == AUTO:
        return given
    if given:
        raise typer.BadParameter("need --validation-file auto", param_hint="--split-share, --split-seed")
    return None


def _pairs(metadata: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for entry in metadata:
        key, equals, value = entry.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"'{entry}' is not KEY=VALUE", param_hint="--metadata")
        pairs[key] = value
    return pairs


def _print_job(job: FineTuningJob, as_json: bool) -> None:
    if as_json:
        print_json(job)
        return
    fields: dict[str, object] = {
        "id": job.id,
        "status": job.status,
        "error": f"{job.error.message} ({job.error.code})" if job.error and job.error.message else None,
        "model": job.model,
        "fine-tuned model": job.fine_tuned_model,
        "training file": job.training_file,
        "validation file": job.validation_file,
        "result file": ", ".join(job.result_files) or None,
        "hyperparameters": _listed(job.hyperparameters.to_dict()),
        "seed": job.seed,
        "metadata": _listed(job.metadata or {}) or None,
        "trained tokens": None if job.trained_tokens is None else f"{job.trained_tokens:,}",
        "created": moment(job.created_at),
        "expected finish": moment(job.estimated_finish),
        "finished": moment(job.finished_at),
    }
    print_fields(fields)


def _print_events(events: list[FineTuningJobEvent], as_json: bool) -> None:
    """Print one line per event."""
    for event in events:
        if as_json:
            print_json_line(event)
        else:
            style = {"warn": "yellow", "error": "red"}.get(event.level)
            line = f"{moment(event.created_at)} {event.level:<5} {event.message}"
            stdout.print(visible(line), style=style, soft_wrap=True)


def _loss(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())
