"""The judges that a grader's document names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

Rename = Callable[[str, str], str]
"""Returns the name to use for a judge, whose name and path in the request it is given."""


def rename_judges(document: Any, rename: Rename, *, param: str = "grader") -> Any:
    """Return a document that `parse_grader` accepts, with its judges under other names."""
    if not isinstance(document, dict):
        return document
    fields = cast("dict[str, Any]", document)
    if "model" in fields:
        return fields | {"model": rename(fields["model"], f"{param}.model")}
    if "graders" in fields:
        return fields | {"graders": _rename_in_parts(fields["graders"], rename, f"{param}.graders")}
    return fields


def _rename_in_parts(parts: Any, rename: Rename, param: str) -> Any:
    if isinstance(parts, list):
        listed = cast("list[Any]", parts)
        return [rename_judges(part, rename, param=f"{param}[{place}]") for place, part in enumerate(listed)]
    if isinstance(parts.get("type"), str):
        return rename_judges(parts, rename, param=param)
    return {name: rename_judges(part, rename, param=f"{param}.{name}") for name, part in parts.items()}
