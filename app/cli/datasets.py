"""`toque files validate`, `validation` and `convert`: check a dataset, here or in the service."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from app.cli.catalogue import read_catalogue
from app.cli.client import DEFAULT_BASE_URL, BaseUrl, connect, not_empty
from app.cli.output import AsJson, fail, print_fields, print_json, print_table, stderr, stdout
from app.cli.settings import read_settings

if TYPE_CHECKING:
    from app.datasets.report import Report

Dataset = Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, show_default=False)]
_COLOURS = {"error": "bold red", "warning": "yellow", "info": "dim"}


def validate(
    path: Dataset,
    base_model: Annotated[
        str | None,
        typer.Option(
            show_default=False, help="Base model whose tokens are counted; by default the catalogue's first."
        ),
    ] = None,
    validation_file: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, show_default=False, help="Held-out file, to compare with this one."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a dataset on this machine as the service would; the exit code is 1 if it has errors.

    Example: toque files validate training.jsonl
    """
    from app.core.errors import ToqueError  # noqa: PLC0415 - as above
    from app.datasets.validation import flag_equal_files, validate_file  # noqa: PLC0415 - as above
    from app.models.catalogue import prepared_base  # noqa: PLC0415 - slow to import

    try:
        settings = read_settings()
        base = prepared_base(settings, read_catalogue(settings), base_model)
    except ToqueError as error:
        fail(error.body.message, 2)
    report = validate_file(path, base, processes=os.cpu_count() or 1, max_lines=settings.max_file_lines)
    if validation_file is not None:
        flag_equal_files(report, path, validation_file)
    if as_json:
        print_json(report.model_dump())
    else:
        print_report(report.model_dump())
    if has_errors(report):
        raise typer.Exit(1)


def validation(
    file_id: Annotated[str, typer.Argument(metavar="FILE_ID", show_default=False, callback=not_empty)],
    base_model: Annotated[str | None, typer.Option(show_default=False)] = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    as_json: AsJson = False,
) -> None:
    """Show what the service's check of a file found.

    Example: toque files validation file-abc123
    """
    with connect(base_url) as client:
        query = {"base_model": base_model} if base_model else {}
        report = client.get(f"/files/{file_id}/validation", cast_to=dict[str, Any], options={"params": query})
    if as_json:
        print_json(report)
    else:
        print_report(report)


def convert(
    path: Dataset,
    prompt: Annotated[str, typer.Option(help="Column with what the user says.")] = "prompt",
    completion: Annotated[str, typer.Option(help="Column with the answer.")] = "completion",
    system: Annotated[
        str | None, typer.Option(show_default=False, help="Column with the system prompt.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", dir_okay=False, show_default=False, help="File to write, instead of stdout."
        ),
    ] = None,
) -> None:
    """Turn a CSV table with named columns into chat examples, one a line.

    Example: toque files convert questions.csv --prompt question --completion answer -o training.jsonl
    """
    from app.datasets.csv_table import CsvError, convert_csv  # noqa: PLC0415 - only here

    target = output.with_name(output.name + ".part") if output is not None else None
    try:
        count = 0
        with target.open("wb") if target is not None else os.fdopen(os.dup(1), "wb") as out:
            for line in convert_csv(path, prompt=prompt, completion=completion, system=system):
                out.write(line + b"\n")
                count += 1
    except CsvError as error:
        if target is not None:
            target.unlink(missing_ok=True)
        fail(str(error))
    if target is not None and output is not None:
        target.replace(output)
    stderr.print(f"{count:,} examples")


def has_errors(report: Report) -> bool:
    """Returns whether the report has errors."""
    return any(found.severity == "error" for found in report.finding_counts)


def print_report(report: Mapping[str, Any]) -> None:
    """Prints the statistics, the findings as a table, and the number of findings that are not listed."""
    counts = report.get("counts")
    if counts is None:
        stdout.print("not checked yet")
        return
    lengths, duplicates = report["token_lengths"], report["duplicates"]
    print_fields(
        {
            "examples": f"{counts['examples']:,}" + _listed(counts["formats"]),
            "turns": f"{counts['turns']:,}" + _listed(counts["roles"]),
            "tokens": f"{counts['tokens']:,}, {counts['target_tokens']:,} of them to learn"
            if counts["tokens"] is not None
            else "not counted: the base model is not prepared here",
            "lengths": f"p50 {lengths['p50']:,}, p90 {lengths['p90']:,}, p99 {lengths['p99']:,}, "
            f"max {lengths['max']:,}; context {lengths['context']:,}"
            if lengths
            else None,
            "duplicates": f"{duplicates['exact']:,} exact, {duplicates['near']:,} near",
            "scripts": ", ".join(_shares(report["scripts"])) or None,
        }
    )
    findings: Sequence[Mapping[str, Any]] = report["findings"]
    if not findings:
        stdout.print("Nothing to remark.")
        return
    stdout.print()
    rows = [
        (
            Text(found["severity"], _COLOURS[found["severity"]]),
            found["line"],
            found["code"],
            found["pointer"] or None,
            f"{found['message']}. {found['hint']}",
        )
        for found in findings
    ]
    print_table(("", "LINE", "CODE", "AT", "WHAT, AND WHAT TO DO"), rows)
    shown = {code: sum(found["code"] == code for found in findings) for code in {f["code"] for f in findings}}
    for found in report["finding_counts"]:
        if found["count"] > shown.get(found["code"], 0):
            more = found["count"] - shown.get(found["code"], 0)
            stdout.print(f"{more:,} more of {found['code']}")


def _listed(counts: Mapping[str, int]) -> str:
    return " (" + ", ".join(f"{count:,} {name}" for name, count in counts.items()) + ")" if counts else ""


def _shares(counts: Mapping[str, int]) -> list[str]:
    total = sum(counts.values()) or 1
    return [f"{name} {count / total:.1%}" for name, count in list(counts.items())[:6]]
