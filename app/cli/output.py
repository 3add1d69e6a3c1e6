"""Prints tables for people, JSON for machines, and one line for an error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeAlias

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.core.control_characters import visible

if TYPE_CHECKING:
    from openai import BaseModel

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON only.")]

# A pipe has no width, so that rows are never wrapped there.
stdout = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 10_000)
stderr = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def fail(message: str, exit_code: int = 1) -> NoReturn:
    """Ends the command with one line on stderr."""
    stderr.print(Text.assemble(("Error: ", "bold red"), visible(" ".join(message.split()))))
    raise typer.Exit(exit_code)


Document: TypeAlias = "BaseModel | Mapping[str, object]"


def print_json(document: Document | Sequence[Document]) -> None:
    """Prints one document as the API returned it."""
    plain = [_plain(item) for item in document] if isinstance(document, Sequence) else _plain(document)
    sys.stdout.write(json.dumps(plain, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def print_json_line(item: Document) -> None:
    """Prints an object on one line, as part of a stream."""
    sys.stdout.write(json.dumps(_plain(item), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table with a line for each object, and a dash for None."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(value if isinstance(value, Text) else Text(_cell(value)) for value in row))
    stdout.print(table)


def print_fields(fields: Mapping[str, object]) -> None:
    """Prints one object, a line for each field that is not None."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        if value is not None:
            table.add_row(name, Text(_cell(value)))
    stdout.print(table)


def moment(seconds: float | None) -> str | None:
    """Returns a time of the API in the reader's time zone."""
    if not seconds:  # 0 is the time of base models, which were made elsewhere
        return None
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _cell(value: object) -> str:
    return "-" if value is None else visible(str(value))


def _plain(item: BaseModel | Mapping[str, object]) -> object:
    return dict(item) if isinstance(item, Mapping) else item.to_dict(mode="json")
