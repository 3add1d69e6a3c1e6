"""Hyperparameters: as asked for, where each may be `"auto"`, and as resolved for the trainer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.core.errors import InvalidRequestError
from app.core.settings import BaseModelEntry
from app.models.adapters.parent import Parent

Auto = Literal["auto"]
_MOST_CHECKPOINTS = 200
"""Each is kept, and can be asked."""

Epochs = Annotated[int, Field(ge=1, le=50, strict=True)]
BatchSize = Annotated[int, Field(ge=1, le=256, strict=True)]
Positive = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
LearningRate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Rank = Annotated[int, Field(ge=1, le=512, strict=True)]
Share = Annotated[float, Field(ge=0, le=0.9, allow_inf_nan=False)]
Steps = Annotated[int, Field(ge=1, strict=True)]
Beta = Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)]
Length = Annotated[int, Field(ge=8, strict=True)]


class LoraHyperparameters(BaseModel):
    """What Toque adds to OpenAI's three; beside them, or at the top of the request (`extra_body`)."""

    model_config = ConfigDict(extra="forbid")

    learning_rate: LearningRate | Auto | None = None
    """Peak learning rate; instead of `learning_rate_multiplier`."""
    lora_rank: Rank | Auto | None = None
    lora_alpha: Rank | Auto | None = None
    lora_dropout: Share | Auto | None = None
    warmup_ratio: Share | Auto | None = None
    weight_decay: Share | Auto | None = None
    max_length: Length | Auto | None = None
    """Tokens in the longest example; at most the base's context."""
    checkpoint_steps: Steps | Auto | None = None
    """Steps between checkpoints that can be served, beside those at the end of every epoch."""


class RequestedHyperparameters(LoraHyperparameters):
    """Everything that a request may set."""

    n_epochs: Epochs | Auto | None = None
    batch_size: BatchSize | Auto | None = None
    learning_rate_multiplier: Positive | Auto | None = None


class DpoHyperparameters(RequestedHyperparameters):
    """What DPO takes beside."""

    beta: Beta | Auto | None = None
    """How dearly the model pays for leaving its reference."""


def resolve_hyperparameters(
    requested: dict[str, Any],
    *,
    examples: int,
    base: BaseModelEntry,
    hidden_size: int | None,
    method: str = "supervised",
    parent: Parent | None = None,
) -> dict[str, Any]:
    """Numbers for the trainer; whatever is absent or `"auto"` is chosen here, or taken over from the parent.

    Raises:
        InvalidRequestError: a number does not fit the base model or the parent, or contradicts another.
    """
    given = {name: value for name, value in requested.items() if value is not None and value != "auto"}
    if "learning_rate" in given and "learning_rate_multiplier" in given:
        raise InvalidRequestError(
            "Set 'learning_rate' or 'learning_rate_multiplier', not both.",
            code="invalid_value",
            param="learning_rate",
        )
    if parent is not None:
        _take_over(given, parent)
    _at_most(given, "lora_rank", base.max_rank, f"the largest rank that '{base.name}' is served with")
    _at_most(given, "max_length", base.context, f"the context of '{base.name}'")

    n_epochs = given.get("n_epochs", _auto_epochs(examples, method))
    batch_size = given.get("batch_size", _auto_batch_size(examples))
    _check_checkpoints(given.get("checkpoint_steps"), steps=n_epochs * -(-examples // batch_size))

    reference_rate = reference_learning_rate(hidden_size, method)
    multiplier = given.get("learning_rate_multiplier", 1.0)
    learning_rate = given.get("learning_rate", reference_rate * multiplier)
    only_dpo = {"beta": given.get("beta", 0.1)} if method == "dpo" else {}
    return only_dpo | {
        "n_epochs": n_epochs,
        "batch_size": batch_size,
        "learning_rate_multiplier": round(learning_rate / reference_rate, 6),
        "learning_rate": learning_rate,
        "lora_rank": given.get("lora_rank", min(16, base.max_rank)),
        "lora_alpha": given.get("lora_alpha", 32),
        "lora_dropout": given.get("lora_dropout", 0.0),
        "warmup_ratio": given.get("warmup_ratio", 0.05),
        "weight_decay": given.get("weight_decay", 0.0),
        "max_grad_norm": 1.0,
        "max_length": given.get("max_length", base.context),
        "checkpoint_steps": given.get("checkpoint_steps"),
    }


def reference_learning_rate(hidden_size: int | None, method: str = "supervised") -> float:
    """The learning rate of multiplier 1: ten times that of full tuning, falling with the model's width.

    5e-5 x 10 x (2000 / width) ^ 0.781, the fit for Llama-like models of the Tinker cookbook
    (https://github.com/thinking-machines-lab/tinker-cookbook, `hyperparam_utils`), after
    "LoRA Without Regret" (Thinking Machines, 2025). For DPO a twentieth of it, the ratio of TRL's defaults
    (`DPOConfig` 1e-6, `SFTConfig` 2e-5: https://huggingface.co/docs/trl), as is `beta` 0.1, which the authors
    of DPO use too (https://arxiv.org/abs/2305.18290, appendix B).
    """
    rate = 5e-4 * (2000 / (hidden_size or 2000)) ** 0.781
    return round(rate / 20 if method == "dpo" else rate, 8)


def _auto_epochs(examples: int, method: str) -> int:
    """Passes that show about 900 examples: three to ten; one to three for DPO, which overshoots sooner."""
    least, most = (1, 3) if method == "dpo" else (3, 10)
    return min(most, max(least, -(-900 // examples)))


def _auto_batch_size(examples: int) -> int:
    """Small batches suit LoRA; larger ones only where there is enough data for many steps."""
    return 4 if examples < 100 else 8 if examples < 4000 else 16


def _check_checkpoints(every: int | None, *, steps: int) -> None:
    if every is not None and steps // every > _MOST_CHECKPOINTS:
        raise InvalidRequestError(
            f"Invalid value for 'checkpoint_steps': the job has {steps:,} steps, so that makes "
            f"{steps // every:,} checkpoints; at most {_MOST_CHECKPOINTS}: set "
            f"{-(-steps // _MOST_CHECKPOINTS)} or more.",
            code="invalid_value",
            param="checkpoint_steps",
        )


def _take_over(given: dict[str, Any], parent: Parent) -> None:
    """Weights have the shape that they have: the new adapter's is its parent's."""
    for name, value in (("lora_rank", parent.rank), ("lora_alpha", parent.alpha)):
        if given.get(name, value) != value:
            raise InvalidRequestError(
                f"Invalid value for '{name}': '{parent.name}', from which training goes on, has {value}; "
                "leave it out.",
                code="invalid_value",
                param=name,
            )
        given[name] = value


def _at_most(given: dict[str, Any], name: str, bound: int, what: str) -> None:
    if given.get(name, 0) > bound:
        raise InvalidRequestError(
            f"Invalid value for '{name}': at most {bound}, {what}.", code="invalid_value", param=name
        )
