"""The rules of a gate as people read them: what each asks for, what it came to, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from app.comparisons.results import Interval
from app.models.promotion.schemas import RuleResult

Finding = Literal["passed", "failed", "uncertain"]

_OPPONENTS = {
    "base": "the base model as it is",
    "prompted": "every prompt without fine-tuning",
    "current": "what the alias points to",
}


@dataclass(frozen=True, slots=True)
class Scale:
    """From where to where the picture of a rule reaches."""

    least: float
    most: float


@dataclass(frozen=True, slots=True)
class RuleView:
    """A rule and its result."""

    result: RuleResult

    @property
    def title(self) -> str:
        """What the rule asks for."""
        required = self.result.required
        kind, _, opponent = self.result.rule.partition(":")
        match kind:
            case "min_score":
                return f"Scores at least {100 * required:.3g} %"
            case "beats":
                more = f" by more than {100 * required:.3g} points" if required else ""
                return f"Beats {_OPPONENTS.get(opponent, opponent)}{more}"
            case "max_latency_ratio":
                return f"Takes at most {required:.3g} times as long as the base model"
            case "max_regression":
                return f"Loses at most {100 * required:.3g} points on general questions"
            case _:
                return self.result.rule

    @property
    def finding(self) -> Finding:
        """What it came to: a rule that fails is uncertain if more questions might show that it holds."""
        if self.result.passed:
            return "passed"
        return "uncertain" if self._may_hold() else "failed"

    @property
    def is_narrow(self) -> bool:
        """Whether it holds, and chance alone may be why."""
        return self.result.passed and not self._holds_surely()

    @property
    def interval(self) -> Interval | None:
        """The interval of what was measured; None where there is none."""
        return self.result.interval

    @property
    def scale(self) -> Scale:
        """From where to where its picture reaches, with some room beside what is to be seen."""
        assert self.interval is not None
        if self.result.rule == "min_score":
            return Scale(0.0, 1.0)
        low = min(self.interval.low, self.result.required, 0.0)
        high = max(self.interval.high, self.result.required, 0.0)
        room = max(high - low, 0.02) / 10
        return Scale(low - room, high + room)

    def _may_hold(self) -> bool:
        if self.interval is None:
            return False
        if self.result.rule == "max_regression":
            return self.interval.low <= self.result.required
        return self.interval.high > self.result.required

    def _holds_surely(self) -> bool:
        if self.interval is None or self.result.rule.startswith("beats:"):
            return True
        if self.result.rule == "max_regression":
            return self.interval.high <= self.result.required
        return self.interval.low >= self.result.required


def rule_views(rules: Iterable[RuleResult | dict[str, Any]] | None) -> Sequence[RuleView]:
    """Return the rules of a decision, or those of a line of history."""
    return [RuleView(RuleResult.model_validate(rule)) for rule in rules or ()]
