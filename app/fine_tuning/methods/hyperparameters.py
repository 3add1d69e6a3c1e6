"""The hyperparameters: the one declaration that the API, the command line, the trainer and the docs share.

To add one, add a field to `Hyperparameters` and use it in the trainer. `python -m
app.fine_tuning.methods.hyperparameters` prints the table for docs/api.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, get_args, get_type_hints

import msgspec

from app.fine_tuning.methods.method import Method


@dataclass(frozen=True, slots=True)
class JobShape:
    """What the choice of an `auto` value may depend on."""

    method: Method
    examples: int
    """The number of examples to train on."""
    max_rank: int
    """The largest rank that the base model is served with."""
    context: int
    """The base model's context, in tokens."""
    hidden_size: int | None
    """The base model's width; None if it is not prepared on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameter:
    """The declaration of one hyperparameter. Its name and type are those of its field."""

    meaning: str
    """A sentence for the docs and the command line's help."""
    auto: float | Callable[[JobShape], float | None] | None
    """The value where a request says nothing or `auto`."""
    auto_meaning: str = ""
    """How `auto` is chosen, in words, unless it is a constant."""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    bound_by_base: str = ""
    """The field of the base model's catalogue entry that bounds it from above, too."""
    base_bound: str = ""
    """That bound in the words of an error message; `{base}` stands for the base model."""
    methods: tuple[str, ...] = ()
    """The methods that take it; all of them if empty."""
    is_openais: bool = False
    """Whether OpenAI's API has it. The others may also be given at the top of a request (`extra_body`)."""
    name: str = ""
    type: type[int] | type[float] = float
    """The type in a request."""
    resolved_type: Any = None
    """The type of the field, which may allow more than a request may set."""

    def choose(self, job: JobShape) -> float | None:
        """Return the value that `auto` stands for."""
        return self.auto(job) if callable(self.auto) else self.auto


def _auto_epochs(job: JobShape) -> int:
    fewest, most = job.method.epochs
    return min(most, max(fewest, -(-900 // job.examples)))


def _auto_batch_size(job: JobShape) -> int:
    """Small batches suit LoRA; larger ones only pay where there is enough data for many steps."""
    return 4 if job.examples < 100 else 8 if job.examples < 4000 else 16


def reference_learning_rate(job: JobShape) -> float:
    """Return the learning rate of multiplier 1: ten times that of full fine-tuning, less for wider models.

    5e-5 x 10 x (2000 / width) ^ 0.781 is the Tinker cookbook's fit for Llama-like models
    (https://github.com/thinking-machines-lab/tinker-cookbook, `hyperparam_utils`), after "LoRA Without
    Regret" (Thinking Machines, 2025).
    """
    rate = 5e-4 * (2000 / (job.hidden_size or 2000)) ** 0.781
    return round(rate * job.method.learning_rate_factor, 8)


class Hyperparameters(msgspec.Struct, frozen=True, kw_only=True):
    """The resolved hyperparameters of a job, as the trainer takes them: nothing here is `auto`."""

    n_epochs: Annotated[
        int,
        Hyperparameter(
            meaning="Passes over the training file.",
            auto=_auto_epochs,
            auto_meaning="as many as show about 900 examples: 3 to 10, for DPO 1 to 3",
            at_least=1,
            at_most=50,
            is_openais=True,
        ),
    ]
    batch_size: Annotated[
        int,
        Hyperparameter(
            meaning="Examples per optimizer step.",
            auto=_auto_batch_size,
            auto_meaning="4 below 100 examples, 8 below 4,000, else 16",
            at_least=1,
            at_most=256,
            is_openais=True,
        ),
    ]
    learning_rate_multiplier: Annotated[
        float,
        Hyperparameter(
            meaning="Factor of the learning rate that `auto` chooses.",
            auto=1.0,
            above=0,
            at_most=1000,
            is_openais=True,
        ),
    ] = 1.0
    learning_rate: Annotated[
        float,
        Hyperparameter(
            meaning="Peak learning rate, reached after the warm-up; instead of `learning_rate_multiplier`.",
            auto=reference_learning_rate,
            auto_meaning="a rate that falls with the model's width; for DPO a twentieth of it",
            above=0,
            at_most=1,
        ),
    ]
    lora_rank: Annotated[
        int,
        Hyperparameter(
            meaning="Rank of the adapter.",
            auto=lambda job: min(16, job.max_rank),
            auto_meaning="16, or the base model's `max_rank` if that is less",
            at_least=1,
            at_most=512,
            bound_by_base="max_rank",
            base_bound="the largest rank that {base} is served with",
        ),
    ]
    lora_alpha: Annotated[
        int | float,
        Hyperparameter(
            meaning="Scale of the adapter, which is divided by its rank.", auto=32, at_least=1, at_most=512
        ),
    ]
    """It may be a fraction if it is inherited from a parent."""
    lora_dropout: Annotated[
        float, Hyperparameter(meaning="Dropout before the adapter.", auto=0.0, at_least=0, at_most=0.9)
    ]
    warmup_ratio: Annotated[
        float,
        Hyperparameter(
            meaning="Share of the steps in which the learning rate rises.", auto=0.05, at_least=0, at_most=0.9
        ),
    ]
    weight_decay: Annotated[
        float, Hyperparameter(meaning="Weight decay of AdamW.", auto=0.0, at_least=0, at_most=0.9)
    ]
    max_length: Annotated[
        int,
        Hyperparameter(
            meaning="Tokens in the longest example; a longer one is an error and never cut.",
            auto=lambda job: job.context,
            auto_meaning="the base model's context",
            at_least=8,
            bound_by_base="context",
            base_bound="the context of {base}",
        ),
    ]
    checkpoint_steps: Annotated[
        int | None,
        Hyperparameter(
            meaning="Steps between checkpoints that can be served, beside those at the end of every epoch.",
            auto=None,
            auto_meaning="checkpoints at the end of every epoch only",
            at_least=1,
        ),
    ] = None
    # 0.1 is TRL's default, and what the authors of DPO use (https://arxiv.org/abs/2305.18290, appendix B).
    beta: Annotated[
        float | None,
        Hyperparameter(
            meaning="How strongly the model is kept close to its reference: itself before training.",
            auto=0.1,
            above=0,
            at_most=2,
            methods=("dpo",),
        ),
    ] = None
    max_grad_norm: float = 1.0
    """The norm that gradients are clipped to; no request can set it."""


def _declared() -> tuple[Hyperparameter, ...]:
    declared: list[Hyperparameter] = []
    for name, hint in get_type_hints(Hyperparameters, include_extras=True).items():
        resolved_type, *metadata = get_args(hint) or (hint,)
        if metadata and isinstance(metadata[0], Hyperparameter):
            requested = next(
                (each for each in get_args(resolved_type) if each is not NoneType), resolved_type
            )
            declared.append(
                dataclasses.replace(metadata[0], name=name, type=requested, resolved_type=resolved_type)
            )
    return tuple(declared)


HYPERPARAMETERS = _declared()
"""All that a request may set, in the order of their fields."""


def taken_by(method: Method) -> tuple[Hyperparameter, ...]:
    """Return the hyperparameters that the method takes."""
    return tuple(each for each in HYPERPARAMETERS if not each.methods or method.name in each.methods)


def markdown_table() -> str:
    """Return the table of all hyperparameters for the docs."""
    rows = ["| name | meaning | `auto` | range |", "|---|---|---|---|"]
    for each in HYPERPARAMETERS:
        only = f" ({', '.join(each.methods)} only)" if each.methods else ""
        auto = each.auto_meaning or ("none" if each.auto is None else f"{each.auto:g}")
        rows.append(f"| `{each.name}`{only} | {each.meaning.rstrip('.')} | {auto} | {_range(each)} |")
    return "\n".join(rows)


def _range(each: Hyperparameter) -> str:
    if each.above is None and each.at_least is None:
        return "any number" if each.at_most is None else f"at most {each.at_most:g}"
    least = f"above {each.above:g}" if each.above is not None else f"{each.at_least:g}"
    if each.bound_by_base:
        return f"{least} to the base model's `{each.bound_by_base}`"
    if each.at_most is None:
        return f"{least} or more"
    return f"{least}{',' if each.above is not None else ''} to {each.at_most:g}"


if __name__ == "__main__":
    print(markdown_table())
