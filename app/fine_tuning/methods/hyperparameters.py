"""The hyperparameters: the one declaration that the API, the command line, the trainer and the docs share.

To add one, add a field to `Hyperparameters` and use it in the trainer. `python -m
app.fine_tuning.methods.hyperparameters` prints the table for docs/api.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from app.fine_tuning.methods.method import Method

Value = float | str
"""What a hyperparameter that a request leaves to `auto` may come to."""


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
    quantization: str | None = None
    """How the base model is quantized unless a job says otherwise; None for not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameter:
    """The declaration of one hyperparameter. Its name and type are those of its field."""

    meaning: str
    """A sentence for the docs and the command line's help."""
    auto: Value | Callable[[JobShape], Value | None] | None
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
    spec_version: int = 1
    """The version that a worker must support to train with another value than the field's default
    (`FineTuningJob.spec_version`)."""
    name: str = ""
    type: Any = None
    """The type in a request: a number's, a `Literal` of words, `list[str]`, or words or a list. It is the
    field's without None, unless the declaration says otherwise."""
    resolved_type: Any = None
    """The type of the field, which may allow more than a request may set."""

    def choose(self, job: JobShape) -> Value | None:
        """Return the value that `auto` stands for."""
        return self.auto(job) if callable(self.auto) else self.auto

    @property
    def is_number(self) -> bool:
        """Whether it is a number, and not words or names."""
        return self.type in (int, float)

    @property
    def words(self) -> tuple[str, ...]:
        """The words that it may be."""
        literals = [each for each in _members(self.type) if get_origin(each) is Literal]
        return tuple(word for each in literals for word in get_args(each))

    @property
    def takes_names(self) -> bool:
        """Whether it may be a list of names."""
        return list[str] in _members(self.type)


def _members(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union, without None; of any other type, itself."""
    is_union = get_origin(kind) in (Union, UnionType)
    return tuple(each for each in (get_args(kind) if is_union else (kind,)) if each is not NoneType)


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
            meaning="Scale of the adapter, which is divided by its rank.",
            auto=32,
            at_least=1,
            at_most=512,
            type=int,
        ),
    ]
    """It may be a fraction if it is inherited from a parent."""
    lora_dropout: Annotated[
        float, Hyperparameter(meaning="Dropout before the adapter.", auto=0.0, at_least=0, at_most=0.9)
    ]
    target_modules: Annotated[
        Literal["all-linear", "attention", "mlp"] | list[str],
        Hyperparameter(
            meaning="Linear modules that the adapter has weights for: a group of them, or a list of names.",
            auto="all-linear",
            spec_version=3,
        ),
    ] = "all-linear"
    """A list, too, if it is inherited from a parent."""
    quantization: Annotated[
        Literal["nf4", "none"],
        Hyperparameter(
            meaning="How the base model's linear layers are stored while training: `nf4` takes a quarter of "
            "the memory.",
            auto=lambda job: job.quantization or "none",
            auto_meaning="the base model's `quantization` in the catalogue, or `none`",
            spec_version=3,
        ),
    ] = "none"
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
    gpus: Annotated[
        int,
        Hyperparameter(
            meaning="GPUs of one machine that share the base model and the work of every step.",
            auto=1,
            at_least=1,
            at_most=64,
            spec_version=3,
        ),
    ] = 1
    max_grad_norm: float = 1.0
    """The norm that gradients are clipped to; no request can set it."""


def _declared() -> tuple[Hyperparameter, ...]:
    declared: list[Hyperparameter] = []
    for name, hint in get_type_hints(Hyperparameters, include_extras=True).items():
        resolved_type, *metadata = get_args(hint) or (hint,)
        if metadata and isinstance(metadata[0], Hyperparameter):
            requested = metadata[0].type or Union[_members(resolved_type)]  # noqa: UP007 - made of a tuple
            declared.append(
                dataclasses.replace(metadata[0], name=name, type=requested, resolved_type=resolved_type)
            )
    return tuple(declared)


HYPERPARAMETERS = _declared()
"""All that a request may set, in the order of their fields."""


def taken_by(method: Method) -> tuple[Hyperparameter, ...]:
    """Return the hyperparameters that the method takes."""
    return tuple(each for each in HYPERPARAMETERS if not each.methods or method.name in each.methods)


def required_spec_version(hyperparameters: dict[str, Any]) -> int:
    """Return the version that a worker must support to train with these."""
    # What older workers do is the default of the field, with which older jobs are read.
    unset = {field.name: field.default for field in msgspec.structs.fields(Hyperparameters)}
    newer = [each for each in HYPERPARAMETERS if each.spec_version > 1 and each.name in hyperparameters]
    return max(
        (each.spec_version for each in newer if hyperparameters[each.name] != unset[each.name]), default=1
    )


def markdown_table() -> str:
    """Return the table of all hyperparameters for the docs."""
    rows = ["| name | meaning | `auto` | range |", "|---|---|---|---|"]
    for each in HYPERPARAMETERS:
        only = f" ({', '.join(each.methods)} only)" if each.methods else ""
        auto, bounds = auto_in_words(each), range_in_words(each)
        rows.append(f"| `{each.name}`{only} | {each.meaning.rstrip('.')} | {auto} | {bounds} |")
    return "\n".join(rows)


def auto_in_words(each: Hyperparameter) -> str:
    """Say what `auto` stands for, as Markdown."""
    if each.auto_meaning:
        return each.auto_meaning
    if isinstance(each.auto, str):
        return f"`{each.auto}`"
    return "none" if each.auto is None else f"{each.auto:g}"


def range_in_words(each: Hyperparameter) -> str:
    """Say which values it may have, as Markdown."""
    if not each.is_number:
        return ", ".join([*(f"`{word}`" for word in each.words), *(["or names"] if each.takes_names else [])])
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
