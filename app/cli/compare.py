"""`toque compare`: candidates on held-out questions, and what came of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from app.cli.candidates import Uploads, parse_candidate, parse_grader
from app.cli.client import (
    DEFAULT_BASE_URL,
    BaseUrl,
    connect,
    get_object,
    given,
    list_objects,
    not_empty,
    post_object,
)
from app.cli.compare_report import answer_or_error, print_comparison, write_junit
from app.cli.comparison_progress import await_comparison
from app.cli.output import AsJson, fail, moment, print_json, print_json_line, print_table, stderr, stdout
from app.comparisons.report.documents import reference_text
from app.core.control_characters import visible

if TYPE_CHECKING:
    from openai import OpenAI

app = typer.Typer(invoke_without_command=True)

ComparisonId = Annotated[str, typer.Argument(metavar="COMPARISON_ID", show_default=False, callback=not_empty)]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown, for a comment on a change.")]
_NEEDED = ("file", "base_model", "candidate", "grader")


@app.callback()
def compare(
    context: typer.Context,
    file: Annotated[
        str | None, typer.Option(show_default=False, help="Held-out questions: a path or a file id.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(show_default=False, help="The base model; `toque models list` lists them.")
    ] = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CANDIDATE",
            show_default=False,
            help="base, prompt=SYSTEM.txt, few-shot=8:TRAIN.jsonl (or 8:nearest:…), checkpoints=JOB, "
            "a model's name, or a JSON document as the API takes it; may be given again.",
        ),
    ] = None,
    grader: Annotated[
        str | None, typer.Option(show_default=False, help="exact_match, …, or a JSON document.")
    ] = None,
    regression_file: Annotated[
        str | None, typer.Option(show_default=False, help="General questions: a path or a file id.")
    ] = None,
    regression_grader: Annotated[
        str | None, typer.Option(show_default=False, help="The grader of the general questions.")
    ] = None,
    max_regression: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            show_default=False,
            help="Largest acceptable loss of score on the general questions.",
        ),
    ] = None,
    good_enough: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, show_default=False, help="Score at which prompting counts as good enough."
        ),
    ] = None,
    training_file: Annotated[
        str | None,
        typer.Option(
            show_default=False, help="Training file whose questions are left out: a path or a file id."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(show_default=False)] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, show_default=False, help="Maximum number of tokens per answer.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, show_default=False, help="Maximum number of requests in flight.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, show_default=False)] = None,
    wait_for_end: Annotated[bool, typer.Option("--wait", help="Wait until it ends.")] = False,
    timeout: Annotated[
        float | None, typer.Option(min=0, show_default=False, help="Seconds to wait, then exit code 4.")
    ] = None,
    junit: Annotated[
        Path | None,
        typer.Option(dir_okay=False, show_default=False, help="Write a JUnit report; implies --wait."),
    ] = None,
    as_markdown: AsMarkdown = False,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    as_json: AsJson = False,
) -> None:
    """Compare candidates on held-out questions: is fine-tuning worth it here?

    Example: toque compare --file heldout.jsonl --base-model smollm2-135m-instruct --candidate base
    --candidate prompt=system.txt --candidate ft:… --grader exact_match --wait
    """
    if context.invoked_subcommand is not None:
        return
    for needed in _NEEDED:
        if not context.params[needed]:
            raise typer.BadParameter("it is missing", param_hint=f"--{needed.replace('_', '-')}")
    if junit is not None and not junit.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {junit.parent}", param_hint="--junit")
    with connect(base_url) as client:
        uploads = Uploads(client)
        request = {
            "file": uploads.file_id(file or "", "--file"),
            "model": base_model,
            "candidates": [parse_candidate(each, uploads) for each in candidate or []],
            "grader": parse_grader(grader or "", "--grader"),
        } | given(
            regression_file=regression_file and uploads.file_id(regression_file, "--regression-file"),
            regression_grader=regression_grader and parse_grader(regression_grader, "--regression-grader"),
            training_file=training_file and uploads.file_id(training_file, "--training-file"),
            max_regression=max_regression,
            good_enough=good_enough,
            name=name,
            max_tokens=max_tokens,
            concurrency=concurrency,
            seed=seed,
        )
        comparison = post_object(client, "/comparisons", request)
        exit_code = 0
        if wait_for_end or junit is not None:
            stderr.print(f"Created comparison {comparison['id']}")
            comparison, exit_code = await_comparison(client, comparison, timeout)
        if junit is not None and comparison["status"] == "succeeded":
            _write_junit(client, junit, comparison)
        _print(client, comparison, as_json=as_json, as_markdown=as_markdown)
    if exit_code:
        raise typer.Exit(exit_code)


@app.command()
def get(
    comparison_id: ComparisonId,
    as_markdown: AsMarkdown = False,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    as_json: AsJson = False,
) -> None:
    """Show one comparison.

    Example: toque compare get cmp_abc123
    """
    with connect(base_url) as client:
        comparison = get_object(client, _path(comparison_id))
        _print(client, comparison, as_json=as_json, as_markdown=as_markdown)


@app.command("list")
def list_comparisons(
    limit: Annotated[int, typer.Option(min=1, max=100, help="Newest comparisons to show.")] = 20,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    as_json: AsJson = False,
) -> None:
    """List comparisons, newest first.

    Example: toque compare list
    """
    with connect(base_url) as client:
        found: list[dict[str, Any]] = get_object(client, f"/comparisons?limit={limit}")["data"]
    if as_json:
        print_json(found)
        return
    rows = [
        (
            each["id"],
            each["name"],
            each["status"],
            _verdict(each),
            f"{each['progress']['done']}/{each['progress']['total']}",
            moment(each["created_at"]),
        )
        for each in found
    ]
    print_table(("ID", "NAME", "STATUS", "VERDICT", "ANSWERS", "CREATED"), rows)


@app.command()
def cancel(
    comparison_id: ComparisonId, base_url: BaseUrl = DEFAULT_BASE_URL, as_json: AsJson = False
) -> None:
    """Cancel a comparison; its answers so far stay.

    Example: toque compare cancel cmp_abc123
    """
    with connect(base_url) as client:
        comparison = post_object(client, f"{_path(comparison_id)}/cancel", {})
        _print(client, comparison, as_json=as_json, as_markdown=False)


@app.command()
def wait(
    comparison_id: ComparisonId,
    timeout: Annotated[float | None, typer.Option(min=0, show_default=False)] = None,
    as_markdown: AsMarkdown = False,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    as_json: AsJson = False,
) -> None:
    """Wait for a comparison; exit code 0 succeeded, 1 failed, 3 cancelled, 4 timed out.

    Example: toque compare wait cmp_abc123
    """
    with connect(base_url) as client:
        seen = get_object(client, _path(comparison_id))
        comparison, exit_code = await_comparison(client, seen, timeout)
        _print(client, comparison, as_json=as_json, as_markdown=as_markdown)
    if exit_code:
        raise typer.Exit(exit_code)


@app.command()
def items(comparison_id: ComparisonId, base_url: BaseUrl = DEFAULT_BASE_URL, as_json: AsJson = False) -> None:
    """Show every question with its answers and scores; --json prints one question a line.

    Example: toque compare items cmp_abc123 --json
    """
    with connect(base_url) as client:
        found = list_objects(client, f"{_path(comparison_id)}/items")
    for item in found:
        if as_json:
            print_json_line(item)
            continue
        asked = f"line {item['line']}: {item['messages'][-1].get('content')}"
        stdout.print(visible(asked), soft_wrap=True, style="bold")
        stdout.print(visible(f"  reference: {reference_text(item)}"), soft_wrap=True)
        for answer in item["answers"]:
            score = "-" if answer["score"] is None else f"{answer['score']:.2f}"
            answered = f"  {score}  {answer['candidate']}: {answer_or_error(answer)}"
            stdout.print(visible(answered), soft_wrap=True)


@app.command()
def report(
    comparison_id: ComparisonId,
    as_html: Annotated[bool, typer.Option("--html", help="Write one self-contained HTML page.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", dir_okay=False, show_default=False, help="Write to this file instead of stdout."
        ),
    ] = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
) -> None:
    """Write a comparison's report: Markdown, or an HTML page.

    Example: toque compare report cmp_abc123 --html -o report.html
    """
    with connect(base_url) as client:
        if as_html:
            content = client.get(f"{_path(comparison_id)}/report", cast_to=str)
        else:
            content = _markdown(client, get_object(client, _path(comparison_id)))
    if output is None:
        sys.stdout.write(content)
        return
    try:
        output.write_text(content, "utf-8")
    except OSError as error:
        fail(f"cannot write {output}: {error}")


def _write_junit(client: OpenAI, path: Path, comparison: dict[str, Any]) -> None:
    found = list_objects(client, f"{_path(comparison['id'])}/items")
    try:
        write_junit(path, comparison, found)
    except OSError as error:
        fail(f"cannot write {path}: {error}")


def _verdict(comparison: dict[str, Any]) -> str | None:
    verdict: dict[str, Any] = comparison["verdict"] or {}
    return verdict.get("code")


def _print(client: OpenAI, comparison: dict[str, Any], *, as_json: bool, as_markdown: bool) -> None:
    if as_json:
        print_json(comparison)
    elif as_markdown:
        sys.stdout.write(_markdown(client, comparison))
    else:
        print_comparison(comparison)


def _markdown(client: OpenAI, comparison: dict[str, Any]) -> str:
    from app.comparisons.report.markdown import render_markdown  # noqa: PLC0415 - slow to import

    general = comparison["results"] is not None and comparison["regression_file"] is not None
    return render_markdown(
        comparison, list_objects(client, f"{_path(comparison['id'])}/items") if general else []
    )


def _path(comparison_id: str) -> str:
    return f"/comparisons/{quote(comparison_id, safe='')}"
