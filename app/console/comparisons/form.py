"""The form of a new comparison: what is filled in, the request that it makes, and what is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from app.comparisons.schemas import CreateComparison
from app.console.comparisons.grader_settings import DOCUMENT, settings_of
from app.core.errors import ErrorBody
from app.core.validation_errors import validation_error

TEXTS = ("name", "file", "model", "regression_file", "training_file")
NUMBERS = ("max_tokens", "temperature", "concurrency", "seed", "margin", "good_enough", "max_regression")
CANDIDATE_FIELDS: Mapping[str, tuple[str, ...]] = {
    "base": (),
    "prompt": ("system",),
    "few_shot": ("examples", "file", "selection", "system"),
    "model": ("model",),
    "checkpoints": ("job",),
    "external": ("base_url", "model", "api_key"),
}
"""The fields of each type of candidate, besides its name."""
MOST_CANDIDATES = 64
_CANDIDATE = re.compile(r"candidates\[(\d{1,6})\]\.(\w{1,32})")


@dataclass(slots=True)
class Form:
    """What has been filled in."""

    values: dict[str, str] = field(default_factory=dict[str, str])
    """By the fields' names, which are the paths of the request; candidates are not among them."""
    candidates: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    problems: dict[str, str] = field(default_factory=dict[str, str])
    """What is wrong, by the name of the field that it is shown at."""
    others: list[str] = field(default_factory=list[str])
    """What is wrong with none of the fields."""

    @property
    def grader(self) -> str:
        """The type of the grader."""
        return self.values.get("grader.type", "")

    @property
    def is_right(self) -> bool:
        """Whether nothing is known to be wrong."""
        return not self.problems and not self.others

    def value(self, name: str, default: str = "") -> str:
        """Return what a field holds."""
        return self.values.get(name, default)

    def request(self) -> CreateComparison | None:
        """Return the request that the form makes, or None if something is wrong, which is noted then."""
        body = self._body()
        if not self.is_right:
            return None
        try:
            return CreateComparison.model_validate(body)
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                self.note(validation_error([{**problem, "loc": ("body", *problem["loc"])}], body).body)
            return None

    def note(self, error: ErrorBody) -> None:
        """Show an error at the field that it names, or at the nearest one around that."""
        path = error.param or ""
        names = self._names()
        while path and path not in names:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        if path:
            self.problems.setdefault(path, _plain(error.message, error.param or ""))
        else:
            self.others.append(error.message)

    def _names(self) -> set[str]:
        settings = {f"grader.{setting.name}" for setting in settings_of(self.grader)}
        of_candidates = {
            f"candidates[{place}].{name}"
            for place, candidate in enumerate(self.candidates)
            for name in ("name", *CANDIDATE_FIELDS[candidate["type"]])
        }
        return {*TEXTS, *NUMBERS, "grader", "regression_grader", "candidates", *settings, *of_candidates}

    def _body(self) -> dict[str, Any]:
        body: dict[str, Any] = {name: value for name in TEXTS if (value := self.value(name).strip())}
        body |= {name: _number(value) for name in NUMBERS if (value := self.value(name).strip())}
        body["exclude_training_overlap"] = "exclude_training_overlap" in self.values
        body["grader"] = self._grader()
        if named := self.value("regression_grader").strip():
            is_document = named.startswith("{")
            body["regression_grader"] = self._json("regression_grader", named) if is_document else named
        body["candidates"] = [_candidate(each) for each in self.candidates]
        if not self.candidates:
            self.problems["candidates"] = "Add at least one candidate."
        return body

    def _grader(self) -> Any:
        if self.grader == DOCUMENT:
            return self._json("grader", self.value("grader.document"))
        document: dict[str, Any] = {"type": self.grader}
        for setting in settings_of(self.grader):
            name = f"grader.{setting.name}"
            value = self.value(name)
            if setting.control == "checkbox":
                document[setting.name] = name in self.values
            elif not value.strip():
                continue
            elif setting.control == "number":
                document[setting.name] = _number(value)
            elif setting.control == "lines":
                document[setting.name] = [line.strip() for line in value.splitlines() if line.strip()]
            elif setting.control == "json":
                document[setting.name] = self._json(name, value)
            else:
                document[setting.name] = value
        return document if len(document) > 1 else self.grader

    def _json(self, name: str, text: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            self.problems[name] = f"This is not valid JSON: {error}"
            return None


def read_form(fields: Iterable[tuple[str, Any]]) -> Form:
    """Return the form that a browser has sent; candidates are numbered anew, in their order."""
    form = Form()
    candidates: dict[int, dict[str, str]] = {}
    for name, value in fields:
        if not isinstance(value, str):
            continue
        text = value.replace("\r\n", "\n")
        if found := _CANDIDATE.fullmatch(name):
            candidates.setdefault(int(found[1]), {})[found[2]] = text
        else:
            form.values[name] = text
    form.candidates = [
        candidate for _, candidate in sorted(candidates.items()) if candidate.get("type") in CANDIDATE_FIELDS
    ]
    return form


def _candidate(filled: Mapping[str, str]) -> dict[str, Any]:
    body: dict[str, Any] = {"type": filled["type"]}
    for name in ("name", *CANDIDATE_FIELDS[filled["type"]]):
        value = filled.get(name, "")
        if value.strip():
            body[name] = (
                _number(value) if name == "examples" else value if name == "system" else value.strip()
            )
    return body


def _number(text: str) -> Any:
    """Return the number that a text is; anything else is left to be refused."""
    try:
        number: Any = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return number if isinstance(number, int | float) and not isinstance(number, bool) else text


def _plain(message: str, path: str) -> str:
    """Name the field alone, which is all that people have seen of its path."""
    name = re.split(r"[.\]]+", path)[-1].replace("_", " ")
    return message.replace(f"Missing required parameter '{path}'", f"Fill in '{name}'").replace(
        f"'{path}'", f"'{name}'"
    )
