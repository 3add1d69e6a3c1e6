"""`toque aliases`: movable names for models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast
from urllib.parse import quote

import typer

from app.cli.client import (
    DEFAULT_BASE_URL,
    BaseUrl,
    connect,
    get_object,
    given,
    idempotency_key,
    list_objects,
    not_empty,
    post_object,
)
from app.cli.output import AsJson, moment, print_fields, print_json, print_table

if TYPE_CHECKING:
    from openai import OpenAI

app = typer.Typer(no_args_is_help=True, help="Movable names for models.")

Name = Annotated[str, typer.Argument(metavar="ALIAS", show_default=False, callback=not_empty)]
Reason = Annotated[str | None, typer.Option(show_default=False, help="Why; kept in the alias's history.")]


@app.command("list")
def list_aliases(base_url: BaseUrl = DEFAULT_BASE_URL, as_json: AsJson = False) -> None:
    """List the aliases and where they point.

    Example: toque aliases list
    """
    with connect(base_url) as client:
        aliases = list_objects(client, "/aliases")
    if as_json:
        print_json(aliases)
    else:
        rows = [
            (alias["name"], _shown(alias["split"]), alias["version"], moment(alias["updated_at"]))
            for alias in aliases
        ]
        print_table(("ALIAS", "MODEL", "VERSION", "CHANGED"), rows)


@app.command()
def get(name: Name, base_url: BaseUrl = DEFAULT_BASE_URL, as_json: AsJson = False) -> None:
    """Show one alias.

    Example: toque aliases get house-style:production
    """
    with connect(base_url) as client:
        alias = get_object(client, alias_path(name))
    _print_alias(alias, as_json)


@app.command("set")
def set_alias(
    name: Name,
    model: Annotated[
        list[str],
        typer.Option(
            metavar="MODEL[=WEIGHT]",
            show_default=False,
            help="Model to point to; several, with weights, share the traffic.",
        ),
    ],
    version: Annotated[
        int | None,
        typer.Option(min=1, show_default=False, help="Change it only if it is still at this version."),
    ] = None,
    reason: Reason = None,
    comparison: Annotated[
        str | None,
        typer.Option(show_default=False, help="Comparison that justifies the change; kept in the history."),
    ] = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    as_json: AsJson = False,
) -> None:
    """Point an alias to a model, without a gate; a new alias is created.

    Example: toque aliases set house-style:production --model ft:…:1=95 --model ft:…:2=5
    """
    split = [_share(each) for each in model]
    target = {"model": split[0]["model"]} if len(split) == 1 else {"split": split}
    with connect(base_url) as client:
        seen = version if version is not None else current_version(client, name)
        body = target | given(version=seen, reason=reason, comparison=comparison)
        alias = cast(
            "dict[str, Any]",
            client.put(alias_path(name), cast_to=object, body=body, options={"headers": idempotency_key()}),
        )
    _print_alias(alias, as_json)


@app.command()
def history(name: Name, base_url: BaseUrl = DEFAULT_BASE_URL, as_json: AsJson = False) -> None:
    """Show an alias's changes, newest first: who moved it, when, to which model and why.

    Example: toque aliases history house-style:production
    """
    with connect(base_url) as client:
        changes = list_objects(client, alias_path(name, "history"))
    if as_json:
        print_json(changes)
        return
    rows = [
        (
            change["version"],
            change["kind"],
            _shown(change["to"]),
            change["by"]["name"],
            moment(change["created_at"]),
            change["comparison"],
            change["reason"],
        )
        for change in changes
    ]
    print_table(("VERSION", "CHANGE", "TO", "BY", "WHEN", "COMPARISON", "REASON"), rows)


@app.command()
def rollback(
    name: Name, reason: Reason = None, base_url: BaseUrl = DEFAULT_BASE_URL, as_json: AsJson = False
) -> None:
    """Point an alias to its previous model; a second rollback goes back one step further.

    Example: toque aliases rollback house-style:production --reason "wrong tone"
    """
    with connect(base_url) as client:
        # Names the version to leave, so that two rollbacks at the same time go back by one step only.
        body = given(version=current_version(client, name), reason=reason)
        alias = post_object(client, alias_path(name, "rollback"), body)
    _print_alias(alias, as_json)


@app.command()
def delete(name: Name, base_url: BaseUrl = DEFAULT_BASE_URL, as_json: AsJson = False) -> None:
    """Delete an alias; its models stay, and so does its history.

    Example: toque aliases delete house-style:canary
    """
    with connect(base_url) as client:
        deleted = cast("dict[str, Any]", client.delete(alias_path(name), cast_to=object))
    if as_json:
        print_json(deleted)
    else:
        print_fields({"deleted": deleted["id"]})


def alias_path(name: str, action: str | None = None) -> str:
    """Returns the path of an alias, or of an action on it, under the base URL."""
    path = f"/aliases/{quote(name, safe='')}"
    return path if action is None else f"{path}/{action}"


def current_version(client: OpenAI, name: str) -> int | None:
    """Returns the alias's version, or None if there is no such alias."""
    from openai import NotFoundError  # noqa: PLC0415 - takes a second to import

    try:
        return get_object(client, alias_path(name))["version"]
    except NotFoundError:
        return None


def _share(text: str) -> dict[str, Any]:
    """Parses `MODEL` or `MODEL=WEIGHT`."""
    model, equals, weight = text.rpartition("=")
    if not equals:
        return {"model": text, "weight": 1.0}
    try:
        return {"model": model, "weight": float(weight)}
    except ValueError:
        raise typer.BadParameter(f"'{weight}' is no weight", param_hint="--model") from None


def _shown(split: list[dict[str, Any]] | None) -> str | None:
    if not split:
        return None
    if len(split) == 1:
        return split[0]["model"]
    total = sum(share["weight"] for share in split)
    return ", ".join(f"{share['model']} {share['weight'] / total:.0%}" for share in split)


def _print_alias(alias: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(alias)
        return
    print_fields(
        {
            "alias": alias["name"],
            "model": _shown(alias["split"]),
            "version": alias["version"],
            "changed": moment(alias["updated_at"]),
        }
    )
