"""Writes docs/settings.md, and the table of hyperparameters in docs/api.md: `python -m docs.generate`."""

from __future__ import annotations

import ast
import inspect
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr, TypeAdapter
from pydantic.fields import FieldInfo

from app.core.settings import BaseModelEntry, EngineAddress, Settings
from app.fine_tuning.methods.hyperparameters import markdown_table

SETTINGS_PAGE = Path(__file__).parent / "settings.md"
API_PAGE = Path(__file__).parent / "api.md"

_INTRODUCTION = """\
# Settings

Every setting is an environment variable, and none of them is required. An empty variable counts as not set.

Client commands (`toque jobs`, `toque files`, …) need an address and a key. The address is that of the option
`--base-url`, else of `TOQUE_BASE_URL`, else of `OPENAI_BASE_URL`, else `http://127.0.0.1:8000/v1`. The key is
that of `TOQUE_API_KEY`, else of `OPENAI_API_KEY` (only if the address is that of `OPENAI_BASE_URL`: that
key is meant for it), else the first key, which `toque serve` keeps in its data folder.

`make generated` writes this page from `app/core/settings.py`; edit the docstrings there.
"""


def settings_page() -> str:
    """Return the text of docs/settings.md."""
    return "\n".join(
        [
            _INTRODUCTION,
            _table("variable", Settings, prefix="TOQUE_"),
            "## An entry of `TOQUE_BASE_MODELS`\n",
            _table("key", BaseModelEntry),
            "## An entry of `TOQUE_ENGINE_URLS`\n",
            _table("key", EngineAddress),
        ]
    )


def with_hyperparameters(page: str) -> str:
    """Return docs/api.md with the current table of hyperparameters between its two markers."""
    before, begin, rest = page.partition("<!-- begin hyperparameters -->\n")
    _, end, after = rest.partition("<!-- end hyperparameters -->\n")
    return f"{before}{begin}{markdown_table()}\n{end}{after}"


def _table(first_column: str, model: type[BaseModel], *, prefix: str = "") -> str:
    lines = [f"| {first_column} | default | meaning |", "|---|---|---|"]
    meanings = _attribute_docstrings(model)
    for name, field in model.model_fields.items():
        label = f"{prefix}{name.upper()}" if prefix else name
        lines.append(f"| `{label}` | {_default(name, field)} | {meanings[name]} |")
    return "\n".join(lines) + "\n"


def _attribute_docstrings(model: type) -> dict[str, str]:
    """Return each field's docstring in one line, read from the source so that services need not do it."""
    definition = ast.parse(inspect.getsource(model)).body[0]
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for field, text in pairwise(definition.body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(docstring))):
                found[name] = " ".join(docstring.split())
            case _:
                pass
    return found


def _default(name: str, field: FieldInfo) -> str:
    value: Any = field.default
    if field.is_required():
        return "required"
    if field.default_factory is not None or value in (None, "", []) or isinstance(value, SecretStr):
        return ""
    if isinstance(value, list):
        return f"`{TypeAdapter(list[Any]).dump_json(value, exclude_defaults=True).decode()}`"
    if name.endswith("_bytes"):
        return f"`{value}` ({_in_binary_units(value)})"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _in_binary_units(size: int) -> str:
    return f"{size // 2**30} GiB" if size % 2**30 == 0 else f"{size // 2**20} MiB"


if __name__ == "__main__":
    SETTINGS_PAGE.write_text(settings_page(), "utf-8")
    API_PAGE.write_text(with_hyperparameters(API_PAGE.read_text("utf-8")), "utf-8")
