"""The form of a promotion: the alias, the model, the comparison that speaks for it, and the gate's rules."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, StringConstraints, TypeAdapter, ValidationError

from app.comparisons.results import ComparisonResults
from app.core.errors import InvalidRequestError
from app.models.aliases.schemas import AliasName
from app.models.promotion.schemas import Opponent, PromoteModel

Text = Annotated[str, StringConstraints(strip_whitespace=True, max_length=600)]

OPPONENTS: tuple[Opponent, ...] = ("base", "prompted", "current")
_MARGIN = "5"
"""The points that a model may lose on general questions, where nobody has said otherwise."""


class PromotionForm(BaseModel):
    """What was typed: scores and margins are percentages and points, as people write them."""

    alias: Text = ""
    model: Text = ""
    comparison: Text = ""
    version: Text = ""
    """The version of the alias that the decision was shown for; empty where there was no alias."""
    reason: Text = ""
    min_score: Text = ""
    beats_base: Text = ""
    """`on` if the rule is wanted, as for the other two."""
    beats_base_delta: Text = ""
    beats_prompted: Text = ""
    beats_prompted_delta: Text = ""
    beats_current: Text = ""
    beats_current_delta: Text = ""
    max_latency_ratio: Text = ""
    max_regression: Text = ""
    check: Text = ""
    """Not empty once somebody asked for a decision."""

    @property
    def has_rule(self) -> bool:
        """Whether any rule is wanted."""
        numbers = (self.min_score, self.max_latency_ratio, self.max_regression)
        return any(numbers) or any(self.beats(opponent) for opponent in OPPONENTS)

    @property
    def fields_to_send(self) -> list[str]:
        """The fields that go with a decision when it is acted on: all but those that are asked for then."""
        return [name for name in PromotionForm.model_fields if name not in ("version", "reason")]

    def beats(self, opponent: Opponent) -> bool:
        """Whether the model is to beat these."""
        return bool(getattr(self, f"beats_{opponent}"))

    def delta(self, opponent: Opponent) -> str:
        """Return the margin in points by which it is to beat these, as it was typed."""
        return str(getattr(self, f"beats_{opponent}_delta"))

    def with_rules_for(self, results: ComparisonResults | None) -> PromotionForm:
        """Return the form with rules that fit a comparison, unless it has rules or was sent.

        One of them can fail even where the alias points to nothing yet, so that there is nothing to beat.
        """
        if self.has_rule or self.check:
            return self
        types = {candidate.type for candidate in results.candidates} if results else {"base"}
        rules = {"beats_current": "on"}
        if types & {"prompt", "few_shot"}:
            rules["beats_prompted"] = "on"
        elif "base" in types:
            rules["beats_base"] = "on"
        if results and results.regression:
            rules["max_regression"] = _MARGIN
        return self.model_copy(update=rules)

    def request(self, *, dry_run: bool) -> PromoteModel:
        """Return what it asks for.

        Raises:
            InvalidRequestError: a field is missing or wrong; `param` names it.
        """
        for name, problem in (
            ("alias", "Name the alias that is to move."),
            ("model", "Name the model that it is to point to."),
            ("comparison", "Choose the comparison that speaks for the model."),
        ):
            if not getattr(self, name):
                raise InvalidRequestError(problem, code="missing_required_parameter", param=name)
        body: dict[str, Any] = {
            "model": self.model,
            "comparison": self.comparison,
            "rules": self._rules(),
            "dry_run": dry_run,
            "reason": self.reason or None,
        }
        if self.version.isdecimal() and not dry_run:
            body["version"] = int(self.version)
        try:
            TypeAdapter[str](AliasName).validate_python(self.alias)
        except ValidationError as error:
            raise InvalidRequestError(
                "An alias's name has small letters, digits, and : . _ - inside.",
                code="invalid_value",
                param="alias",
            ) from error
        try:
            return PromoteModel.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InvalidRequestError(f"{first['msg']}.", code="invalid_value", param=where) from error

    def _rules(self) -> dict[str, Any]:
        rules: dict[str, Any] = {
            "beats": [
                {"candidate": opponent, "delta": self._share(f"beats_{opponent}_delta") or 0.0}
                for opponent in OPPONENTS
                if self.beats(opponent)
            ]
        }
        rules["min_score"] = self._share("min_score")
        rules["max_regression"] = self._share("max_regression")
        rules["max_latency_ratio"] = self._number("max_latency_ratio")
        return rules

    def _share(self, name: str) -> float | None:
        """Return a percentage as a share of one."""
        value = self._number(name)
        if value is not None and not 0 <= value <= 100:
            raise InvalidRequestError("Give a number from 0 to 100.", code="invalid_value", param=name)
        return None if value is None else value / 100

    def _number(self, name: str) -> float | None:
        typed = str(getattr(self, name))
        if not typed:
            return None
        try:
            value = float(typed.replace(",", ".").removesuffix("%"))
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InvalidRequestError(f"'{typed[:40]}' is no number.", code="invalid_value", param=name)
        return value
