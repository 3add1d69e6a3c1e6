"""The settings of a grader as fields of a form, made from its declaration."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from app.comparisons.graders.registry import GRADERS

Control = Literal["checkbox", "select", "number", "text", "long text", "lines", "json", "model"]
_LONG_TEXT = 2001
"""From this many characters on, a text gets a field of several lines."""

DOCUMENT = "document"
"""The choice to write the grader's JSON document by hand, in which all graders can be combined."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A field of the form."""

    name: str
    control: Control
    note: str
    default: str
    """As the form has it; empty if the setting has no default."""
    is_needed: bool
    options: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None

    @property
    def label(self) -> str:
        """The setting's name in words."""
        return self.name.replace("_", " ").capitalize()


def describe(kind: str) -> str:
    """Return what a grader does; empty for none of ours."""
    grader = GRADERS.get(kind)
    return (inspect.getdoc(grader) or "").replace("`", "") if grader else ""


def settings_of(kind: str) -> list[Setting]:
    """Return the settings of a grader, in the order of their declaration; none for none of ours."""
    grader = GRADERS.get(kind)
    if grader is None:
        return []
    schema = grader.model_json_schema()
    if "$ref" in schema:  # a grader that may hold one like itself
        schema = schema["$defs"][schema["$ref"].rpartition("/")[2]]
    needed = schema.get("required", ())
    properties: Mapping[str, Mapping[str, Any]] = schema["properties"]
    return [_setting(name, of, name in needed) for name, of in properties.items() if name != "type"]


def _setting(name: str, declared: Mapping[str, Any], is_needed: bool) -> Setting:
    forms = [form for form in declared.get("anyOf", [declared]) if form.get("type") != "null"]
    form: Mapping[str, Any] = forms[0]
    return Setting(
        name,
        _control(name, form),
        str(declared.get("description", "")).replace("\n", " ").replace("`", ""),
        _written(declared.get("default")),
        is_needed,
        tuple(form.get("enum", ())),
        form.get("minimum"),
        form.get("maximum"),
    )


def _control(name: str, form: Mapping[str, Any]) -> Control:
    kind = form.get("type")
    if kind == "string":
        if "enum" in form:
            return "select"
        if name == "model":
            return "model"
        return "long text" if form.get("maxLength", 0) >= _LONG_TEXT else "text"
    if kind == "array":
        return "lines" if form.get("items", {}).get("type") == "string" else "json"
    controls: Mapping[Any, Control] = {"boolean": "checkbox", "integer": "number", "number": "number"}
    return controls.get(kind, "json")


def _written(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)
