"""`toque jobs check`: an offline dry run of a job."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.text import Text

from app.cli.catalogue import read_catalogue
from app.cli.output import fail, moment, print_fields, print_json, stdout
from app.cli.settings import read_settings
from app.core.control_characters import visible
from app.core.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Generator

    from app.core.database import Database
    from app.fine_tuning.preflight.schemas import Findings, JobPreflight

_TARGET = "bold green"


def check_files(
    training: Path,
    model: str,
    validation: str | None,
    split: dict[str, Any] | None,
    method: str,
    requested: dict[str, Any],
    seed: int,
    as_json: bool,
) -> None:
    """Print what a job of these files would do; exit with 1 if it would be refused or fail."""
    # These take a second to import.
    from pydantic import ValidationError  # noqa: PLC0415

    from app.core.errors import ToqueError  # noqa: PLC0415
    from app.fine_tuning.methods import METHODS  # noqa: PLC0415
    from app.fine_tuning.preflight import service as preflight  # noqa: PLC0415
    from app.fine_tuning.requested_hyperparameters import request_model  # noqa: PLC0415
    from app.fine_tuning.schemas import SplitRequest  # noqa: PLC0415

    settings = read_settings()
    try:
        numbers = {name: value for name, value in requested.items() if value is not None}
        given = request_model(METHODS[method]).model_validate(numbers).model_dump(exclude_none=True)
        wanted = SplitRequest.model_validate(split) if split is not None else None
    except ValidationError as error:
        first = error.errors()[0]
        fail(f"{'.'.join(map(str, first['loc']))} is not valid: {first['msg']}", 2)
    validation_file = None if validation in (None, "auto") else Path(validation)
    if validation_file is not None and not validation_file.is_file():
        raise typer.BadParameter(f"there is no file '{validation}'", param_hint="--validation-file")
    try:
        base = read_catalogue(settings).get(model)
        with _measured_speeds(settings) as database:
            found = preflight.check_files(
                database, settings, base, training, validation_file, wanted, method, given, seed
            )
    except ToqueError as error:
        fail(error.body.message)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        _print(found)
    raise typer.Exit(0 if found.ready else 1)


@contextmanager
def _measured_speeds(settings: Settings) -> Generator[Database | None]:
    """Open the database if it is a local file: it knows what earlier jobs took."""
    from sqlalchemy import inspect  # noqa: PLC0415 - SQLAlchemy is slow to import

    from app.core.database import Database  # noqa: PLC0415 - as above

    if settings.database_url or not (settings.data_dir / "toque.db").is_file():
        yield None
        return
    database = Database(settings.sqlalchemy_url)
    try:
        yield database if inspect(database.engine).has_table("training_speeds") else None
    finally:
        database.dispose()


def _print(found: JobPreflight) -> None:
    memory, time, split = found.memory, found.time, found.validation_split
    basis = (
        f"measured in {time.basis.jobs} jobs, the last {moment(time.basis.measured_at)}"
        if time.basis.kind == "measured"
        else "a rough guess: nothing was measured here yet"
    )
    device = f" of {_gib(memory.device_bytes)}" if memory.device_bytes else ""
    print_fields(
        {
            "model": found.model,
            "examples": f"{found.examples:,} to train on, {found.validation_examples:,} to evaluate on",
            "hold-out": f"share {split.share:g}, seed {split.seed}" if split else None,
            "sample": f"{found.sample.examples:,} of {found.sample.of:,}, extrapolated"
            if found.sample
            else None,
            "steps": f"{found.steps:,} ({found.steps_per_epoch:,} per epoch)",
            "tokens per epoch": f"{found.tokens_per_epoch:,}, {found.target_tokens_per_epoch:,} targets",
            "tokens per example": _lengths(found),
            "layout": f"{found.layout}, because {found.layout_reason}" if found.layout else None,
            "not computed": f"{found.shared_share:.1%} of the tokens; padding {found.padding_share:.1%}",
            "hyperparameters": ", ".join(
                f"{name}={value}"
                for name, value in found.hyperparameters.model_dump(exclude_none=True).items()
            ),
            "memory": f"{_gib(memory.peak_bytes)}{device} at its peak"
            + ("" if memory.fits is not False else ": it does not fit"),
            "time": f"{time.seconds:,.0f} s, {time.tokens_per_second:,.0f} tokens/s ({basis})",
            "device": time.basis.device,
            "waits": found.waits,
        }
    )
    _print_findings("Refused", found.refused, "red")
    _print_findings("Special tokens in the text", found.special_tokens, "yellow")
    if found.overlap and (found.overlap.exact or found.overlap.normalised):
        nearly = f"{found.overlap.normalised:,} but for case, spaces and punctuation"
        both = f"{found.overlap.exact:,} exact, {nearly}"
        stdout.print(f"\nValidation examples that are in the training data, too: {both}", style="yellow")
        for pair in found.overlap.listed:
            stdout.print(f"  training line {pair.training_line}, validation line {pair.validation_line}")
    for example in found.rendered:
        stdout.print(f"\nLine {example.line}, as the model reads it:", style="bold")
        text = Text(visible(example.text))
        for start, end in example.targets:
            text.stylize(_TARGET, start, end)
        stdout.print(text, soft_wrap=True)
    stdout.print(
        "\nReady to train." if found.ready else "\nNot ready: see what is refused.",
        style="green" if found.ready else "red",
    )


def _lengths(found: JobPreflight) -> str | None:
    if found.lengths is None:
        return None
    lengths = found.lengths
    return f"median {lengths.p50:,}, 90th percentile {lengths.p90:,}, longest {lengths.max:,}"


def _print_findings(title: str, findings: Findings, style: str) -> None:
    if not findings.total:
        return
    stdout.print(f"\n{title}: {findings.total:,}", style=style)
    for finding in findings.listed:
        place = f" (at {finding.pointer})" if finding.pointer else ""
        stdout.print(visible(f"  line {finding.line} {finding.message}{place}"), soft_wrap=True)
    if findings.total > len(findings.listed):
        stdout.print(f"  … and {findings.total - len(findings.listed):,} more")


def _gib(size: int | None) -> str:
    return f"{(size or 0) / 2**30:.2f} GiB"
