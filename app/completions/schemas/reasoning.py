"""How much a model is to think before it answers, where its base can be told."""

from __future__ import annotations

from typing import Literal

from app.core.errors import InvalidRequestError
from app.core.settings import BaseModelEntry

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


def check_reasoning(base: BaseModelEntry, effort: ReasoningEffort | None, param: str) -> None:
    """Check that a base model can be told how much to think, if the request does so in its field `param`.

    Raises:
        InvalidRequestError: it cannot; the message says what to set in its catalogue entry.
    """
    if effort in (None, "none") or {"reasoning_effort", "enable_thinking"} & {*base.allowed_template_kwargs}:
        return
    raise InvalidRequestError(
        f"Unsupported parameter '{param}': '{base.name}' does not reason before it answers. Leave it out, or "
        "send 'none'. If its chat template has a switch, such as `enable_thinking`, name it in "
        "'allowed_template_kwargs' of its entry in the catalogue.",
        code="unsupported_parameter",
        param=param,
    )
