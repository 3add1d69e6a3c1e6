"""The `tool_calls` grader, for answers that call functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from typing_extensions import override

from app.comparisons.graders.base import Grade, Grader, invalid_grader
from app.comparisons.graders.json_match import equal_values
from app.comparisons.questions import Question
from app.comparisons.tool_calls import call_text, read_call

_LONGEST_DETAIL = 300
"""Characters."""


class ToolCalls(Grader):
    """Gives 1 if the answer makes the reference's calls and no others: the same names with equal arguments.

    Arguments are compared as JSON values, so that neither the order of keys nor white space counts. Calls of
    one turn are made in parallel, so their order does not count either. Where the reference calls nothing, an
    answer without calls is right.
    """

    type: Literal["tool_calls"] = "tool_calls"

    @override
    def grade(
        self,
        question: Question,
        answer: str,
        replies: Sequence[str | None] = (),
        tool_calls: Sequence[dict[str, Any]] = (),
    ) -> Grade:
        left = list(tool_calls)
        missing: list[dict[str, Any]] = []
        for call in question.reference_tool_calls or ():
            wanted = read_call(call)
            place = next((at for at, made in enumerate(left) if equal_values(wanted, read_call(made))), None)
            if place is None:
                missing.append(call)
            else:
                del left[place]
        if not missing and not left:
            return Grade(1.0)
        parts = [("lacks", missing), ("calls", left)]
        detail = "; ".join(f"{word} {', '.join(map(call_text, calls))}" for word, calls in parts if calls)
        return Grade(0.0, detail[:_LONGEST_DETAIL])

    @override
    def check_fits(self, questions: Sequence[Question], *, param: str = "grader") -> None:
        if not any(question.reference_tool_calls for question in questions):
            raise invalid_grader(
                param, "tool_calls does not fit the file: no line's last turn has 'tool_calls'"
            )
