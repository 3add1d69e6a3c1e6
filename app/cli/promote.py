"""`toque promote`: point an alias to a model if a comparison says that the model deserves it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from app.cli.aliases import alias_path, current_version
from app.cli.client import DEFAULT_BASE_URL, BaseUrl, connect, get_object, given, not_empty, post_object
from app.cli.gate_report import Outcome, failed_questions, markdown, write_junit
from app.cli.output import AsJson, fail, print_json, print_table, stdout
from app.core.control_characters import visible

if TYPE_CHECKING:
    from openai import OpenAI

REFUSED = 5
"""Exit code of a gate that said no."""
_NUMBERS = ("min_score", "max_latency_ratio", "max_regression")


def promote(
    alias: Annotated[str, typer.Argument(metavar="ALIAS", show_default=False, callback=not_empty)],
    model: Annotated[
        str, typer.Option(show_default=False, callback=not_empty, help="Where the alias should point.")
    ],
    comparison: Annotated[
        str,
        typer.Option(
            metavar="ID", show_default=False, callback=not_empty, help="A comparison that includes the model."
        ),
    ],
    rule: Annotated[
        list[str],
        typer.Option(
            metavar="RULE",
            show_default=False,
            help="min_score=0.8, beats=base|prompted|current[:DELTA], max_latency_ratio=1.2 or "
            "max_regression=0.05; may be given again, and all must hold.",
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only evaluate the rules; the exit code is the same.")
    ] = False,
    version: Annotated[
        int | None,
        typer.Option(min=1, show_default=False, help="Refuse if the alias is no longer at this version."),
    ] = None,
    reason: Annotated[
        str | None, typer.Option(show_default=False, help="The reason, which is kept in the alias's history.")
    ] = None,
    junit: Annotated[
        Path | None,
        typer.Option(dir_okay=False, show_default=False, help="Write a JUnit report: each rule a test case."),
    ] = None,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown, for a comment on a change.")
    ] = False,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    as_json: AsJson = False,
) -> None:
    """Point an alias to a model if every rule holds; exit code 0, or 5 if the gate refuses.

    Example: toque promote house-style:production --model ft:… --comparison cmp_… --rule beats=prompted
    """
    if as_json and as_markdown:
        raise typer.BadParameter("give --json or --markdown, one of the two", param_hint="--markdown")
    if junit is not None and not junit.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {junit.parent}", param_hint="--junit")
    request = {"model": model, "comparison": comparison, "rules": _rules(rule), "dry_run": dry_run}
    with connect(base_url) as client:
        seen = version if version is not None else current_version(client, alias)
        promotion = ask_gate(client, alias, request | given(version=seen, reason=reason))
        if junit is not None or as_markdown:
            outcome = Outcome(promotion, get_object(client, f"/comparisons/{comparison}"))
            failed = failed_questions(client, outcome)
            if junit is not None:
                try:
                    write_junit(junit, outcome, failed)
                except OSError as error:
                    fail(f"cannot write {junit}: {error}")
            if as_markdown:
                typer.echo(markdown(outcome, failed))
    if as_json:
        print_json(promotion)
    elif not as_markdown:
        print_promotion(promotion)
    if not promotion["passed"]:
        raise typer.Exit(REFUSED)


def ask_gate(client: OpenAI, alias: str, request: dict[str, Any]) -> dict[str, Any]:
    """Return the promotion; if the gate refused it, in the form of a dry run."""
    from openai import ConflictError  # noqa: PLC0415 - takes a second to import

    try:
        return post_object(client, alias_path(alias, "promote"), request)
    except ConflictError as error:
        if error.code != "gate_refused":
            raise
        body = cast("dict[str, Any]", error.body)
        return {
            "object": "alias.promotion",
            "alias": alias,
            "model": request["model"],
            "comparison": request["comparison"],
            "passed": False,
            "promoted": False,
            "dry_run": False,
            "version": request.get("version"),
            "rules": body["rules"],
        }


def _rules(texts: list[str]) -> dict[str, Any]:
    """Return rules such as `min_score=0.8` and `beats=current:0.02` in the form that the API takes."""
    rules: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise typer.BadParameter(f"'{text}' is not RULE=VALUE", param_hint="--rule")
        if name == "beats":
            opponent, colon, delta = value.partition(":")
            beats = {"candidate": opponent, "delta": _number(text, delta) if colon else 0.0}
            rules.setdefault("beats", []).append(beats)
        elif name not in _NUMBERS:
            known = ", ".join((*_NUMBERS, "beats"))
            raise typer.BadParameter(f"there is no rule '{name}'; rules: {known}", param_hint="--rule")
        elif name in rules:
            raise typer.BadParameter(f"'{name}' is given twice", param_hint="--rule")
        else:
            rules[name] = _number(text, value)
    return rules


def _number(rule: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise typer.BadParameter(f"'{value}' in '{rule}' is no number", param_hint="--rule")
    return number


def print_promotion(promotion: dict[str, Any]) -> None:
    """Print the result of each rule, and whether the alias was moved."""
    rows = [
        (each["rule"], "passed" if each["passed"] else "REFUSED", each["sentence"])
        for each in promotion["rules"]
    ]
    print_table(("RULE", "", "WHY"), rows)
    stdout.print(visible(Outcome.sentence_of(promotion)), soft_wrap=True)
