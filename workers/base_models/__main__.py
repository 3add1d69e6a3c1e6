"""`python -m workers.base_models`: pulls base models, and adds them to the catalogue."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from app.base_models.available import available_models
from app.base_models.known import find_known
from app.base_models.stored import StoredBases
from app.core import chat_templates
from app.core.database import Database
from app.core.errors import ToqueError
from app.core.settings import BaseModelEntry, Settings
from app.models.catalogue import Catalogue
from app.storage import open_storage
from workers.base_models.addition import Wishes, add
from workers.base_models.errors import BaseModelError
from workers.base_models.obtaining import fetch, obtain
from workers.base_models.preparation import HUB_ID, pull
from workers.device import detect


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    chosen = _parser().parse_args(arguments)
    try:
        if chosen.command == "pull":
            _pull(chosen)
        elif chosen.command == "fetch":
            _fetch(chosen.source)
        elif chosen.command == "available":
            _print_available()
        else:
            _add(chosen)
    except BaseModelError as error:
        print(error, file=sys.stderr)
    except ToqueError as error:
        print(error.body.message, file=sys.stderr)
    except OSError as error:
        print(f"a file cannot be read or written: {error}", file=sys.stderr)
    except SQLAlchemyError as error:
        print(f"the database cannot be used ({error}); did `toque db upgrade` run?", file=sys.stderr)
    else:
        return 0
    return 1


def _pull(chosen: argparse.Namespace) -> None:
    """Prepare a base model of the catalogue, or add one from the hub."""
    settings = Settings()
    catalogue = Catalogue.load(settings)
    entry = catalogue.find(chosen.source)
    if entry is not None and chosen.into is not None:
        pull(entry, chosen.into.absolute() / entry.name, _say)
    elif entry is not None:
        obtain(settings, entry, _say)
    elif find_known(chosen.source) or HUB_ID.fullmatch(chosen.source):
        _add(chosen)
    else:
        raise BaseModelError(
            f"{chosen.source!r} is neither in the catalogue of base models, which has: {catalogue.names}, "
            "nor in `toque models list --available`, nor a hub id (OWNER/NAME)"
        )


def _fetch(name: str) -> None:
    """Fetch a base model from the bucket, for an engine."""
    settings = Settings()
    entry = Catalogue.load(settings).get(name)
    database = Database(settings.sqlalchemy_url)
    try:
        if not fetch(StoredBases(settings, database, open_storage(settings)), entry):
            raise BaseModelError(
                f"{name} is not in the bucket, or {settings.base_model_dir(entry)} is no base model"
            )
    finally:
        database.dispose()


def _add(chosen: argparse.Namespace) -> None:
    wishes = Wishes(
        name=chosen.name,
        context=chosen.context,
        max_rank=chosen.max_rank,
        quantization=chosen.quantization,
        also_known_as=tuple(chosen.also_known_as),
        tool_parser=chosen.tool_parser,
        reasoning_parser=chosen.reasoning_parser,
        chat_template=_read_template(chosen.chat_template) if chosen.chat_template else None,
        chat_template_kwargs=_parse_variables(chosen.chat_template_kwargs or "{}"),
        allowed_template_kwargs=tuple(chosen.allowed_template_kwargs),
    )
    entry = add(Settings(), detect(), chosen.source, wishes, _say)
    _say(f"{entry.name}: added to the catalogue, {_described(entry)}")


def _read_template(file: Path) -> str:
    if str(file) in chat_templates.NAMES:
        return str(file)
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BaseModelError(f"--chat-template: {file} cannot be read: {error}") from error


def _parse_variables(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise BaseModelError(f"--chat-template-kwargs is not a JSON object: {error}") from error


def _print_available() -> None:
    """Print as JSON which known base models this machine can train and serve."""
    settings, device = Settings(), detect()
    models = available_models(
        settings, Catalogue.load(settings), device.memory_bytes, is_gpu=device.kind == "cuda"
    )
    _say(json.dumps([model.model_dump() for model in models]))


def _described(entry: BaseModelEntry) -> str:
    parsers = [
        f"{kind} parser {name}"
        for kind, name in (("tool", entry.tool_parser), ("reasoning", entry.reasoning_parser))
        if name
    ]
    return ", ".join([f"context {entry.context:,}", f"rank up to {entry.max_rank}", *parsers])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workers.base_models", description="Prepares base models."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    pulling = commands.add_parser("pull", help="prepare a base model of the catalogue, or add one of the hub")
    pulling.add_argument("source", help="a name in the catalogue, or a hub id")
    pulling.add_argument(
        "--into", type=Path, help="a folder to prepare it in, as DIR/NAME, instead of the settings'"
    )
    fetching = commands.add_parser("fetch", help="fetch a base model of the catalogue from the bucket")
    fetching.add_argument("source", help="a name in the catalogue")
    adding = commands.add_parser("add", help="add a base model to the catalogue")
    adding.add_argument("source", help="a folder or a hub id")
    commands.add_parser("available", help="print which known base models fit this machine, as JSON")
    for command in (pulling, adding):
        command.add_argument("--name")
        command.add_argument("--context", type=int)
        command.add_argument("--max-rank", type=int)
        command.add_argument("--quantization")
        command.add_argument("--also-known-as", action="append", default=[])
        command.add_argument("--tool-parser")
        command.add_argument("--reasoning-parser")
        command.add_argument("--chat-template", type=Path)
        command.add_argument("--chat-template-kwargs")
        command.add_argument("--allowed-template-kwargs", action="append", default=[])
    return parser


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
