"""Hyperparameters in a request, where each may be `"auto"`, and how they are resolved for the trainer."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, create_model

from app.core.errors import InvalidRequestError
from app.core.settings import BaseModelEntry
from app.fine_tuning.methods import DEFAULT_METHOD, METHODS
from app.fine_tuning.methods.hyperparameters import (
    HYPERPARAMETERS,
    Hyperparameter,
    JobShape,
    reference_learning_rate,
    taken_by,
)
from app.fine_tuning.methods.method import Method
from app.models.adapters.parent import Parent
from app.models.adapters.target_modules import UnknownModulesError, select

Auto = Literal["auto"]
_Names = Annotated[
    list[Annotated[str, StringConstraints(max_length=255, pattern=r"^[A-Za-z0-9_.]+$")]],
    Field(min_length=1, max_length=100),
]
_MAX_CHECKPOINTS = 200
"""The most checkpoints of a job: each is kept and can be served."""


def _request_fields(declared: Iterable[Hyperparameter]) -> type[BaseModel]:
    """Make a model of optional fields, each with its declared type and bounds."""
    fields: dict[str, Any] = {each.name: (_request_type(each), None) for each in declared}
    return create_model("_RequestFields", __config__=ConfigDict(extra="forbid"), **fields)


def _request_type(declared: Hyperparameter) -> Any:
    if declared.is_number:
        bounds = Field(ge=declared.at_least, gt=declared.above, le=declared.at_most)
        kind = Field(strict=True) if declared.type is int else Field(allow_inf_nan=False)
        return cast(Any, Annotated)[declared.type, bounds, kind] | cast(Any, Auto) | None
    words = cast(Any, Literal)[("auto", *declared.words)]
    return words | cast(Any, _Names) | None if declared.takes_names else words | None


_ANY_METHODS = [each for each in HYPERPARAMETERS if not each.methods]


class LoraHyperparameters(_request_fields(each for each in _ANY_METHODS if not each.is_openais)):
    """The hyperparameters that OpenAI does not have; they may also be given at the top of a request."""


class RequestedHyperparameters(
    LoraHyperparameters, _request_fields(each for each in _ANY_METHODS if each.is_openais)
):
    """The hyperparameters that every method takes."""


def request_model(method: Method) -> type[RequestedHyperparameters]:
    """Return the model of the hyperparameters that a request may set for the method."""
    own = [each for each in HYPERPARAMETERS if method.name in each.methods]
    if not own:
        return RequestedHyperparameters
    model = create_model(
        f"{method.name.capitalize()}Hyperparameters",
        __base__=(RequestedHyperparameters, _request_fields(own)),
        __doc__=f"The hyperparameters that `{method.name}` takes.",
        __module__=__name__,
    )
    return cast(type[RequestedHyperparameters], model)


def resolve_hyperparameters(
    requested: dict[str, Any],
    *,
    examples: int,
    base: BaseModelEntry,
    hidden_size: int | None,
    modules: Collection[str] | None = None,
    method: str = DEFAULT_METHOD,
    parent: Parent | None = None,
) -> dict[str, Any]:
    """Return values for the trainer: what is absent or `"auto"` is chosen here or inherited from the parent.

    Args:
        requested: values by name.
        examples: the number of examples to train on.
        base: the base model.
        hidden_size: its width; None if it is not prepared on this machine.
        modules: the full names of its linear modules; None as above.
        method: the training method's name.
        parent: the model that training continues from; None if it starts from the base.

    Raises:
        InvalidRequestError: a value does not fit the base model or the parent, or contradicts another.
    """
    given = {name: value for name, value in requested.items() if value is not None and value != "auto"}
    if "learning_rate" in given and "learning_rate_multiplier" in given:
        raise InvalidRequestError(
            "Set 'learning_rate' or 'learning_rate_multiplier', not both.",
            code="invalid_value",
            param="learning_rate",
        )
    if modules is not None:
        _check_modules(given, modules, base)
    if parent is not None:
        _inherit(given, parent, modules)
    for each in HYPERPARAMETERS:
        if each.bound_by_base:
            bound = each.base_bound.format(base=f"'{base.name}'")
            _check_bound(given, each.name, getattr(base, each.bound_by_base), bound)

    job = JobShape(METHODS[method], examples, base.max_rank, base.context, hidden_size, base.quantization)
    resolved = {each.name: given.get(each.name, each.choose(job)) for each in taken_by(job.method)}
    _check_checkpoints(examples, resolved)
    reference_rate = reference_learning_rate(job)
    rate = given.get("learning_rate", reference_rate * resolved["learning_rate_multiplier"])
    resolved |= {"learning_rate": rate, "learning_rate_multiplier": round(rate / reference_rate, 6)}
    return resolved | {"max_grad_norm": 1.0}


def _check_checkpoints(examples: int, resolved: dict[str, Any]) -> None:
    every: int | None = resolved["checkpoint_steps"]
    steps = resolved["n_epochs"] * -(-examples // resolved["batch_size"])
    if every is not None and steps // every > _MAX_CHECKPOINTS:
        raise InvalidRequestError(
            f"Invalid value for 'checkpoint_steps': the job has {steps:,} steps, so that makes "
            f"{steps // every:,} checkpoints; at most {_MAX_CHECKPOINTS}: set "
            f"{-(-steps // _MAX_CHECKPOINTS)} or more.",
            code="invalid_value",
            param="checkpoint_steps",
        )


def _inherit(given: dict[str, Any], parent: Parent, modules: Collection[str] | None) -> None:
    """Take over what decides the shape of the parent's weights."""
    if modules is not None and "target_modules" in given:
        same = select(modules, given["target_modules"]) == select(modules, parent.modules)
        given["target_modules"] = parent.modules if same else given["target_modules"]
    for name, value in parent.hyperparameters.items():
        if given.get(name, value) != value:
            shown = ", ".join(cast(list[str], value)) if isinstance(value, list) else value
            raise InvalidRequestError(
                f"Invalid value for '{name}': '{parent.name}', from which training goes on, has "
                f"{str(shown)[:400]}; leave it out.",
                code="invalid_value",
                param=name,
            )
        given[name] = value


def _check_modules(given: dict[str, Any], modules: Collection[str], base: BaseModelEntry) -> None:
    try:
        select(modules, given.get("target_modules", "all-linear"))
    except UnknownModulesError as error:
        raise InvalidRequestError(
            f"Invalid value for 'target_modules': '{base.name}' has no {', '.join(error.unknown)}; "
            f"it has: {', '.join(error.known)}.",
            code="invalid_value",
            param="target_modules",
        ) from None


def _check_bound(given: dict[str, Any], name: str, bound: int, meaning: str) -> None:
    if given.get(name, 0) > bound:
        raise InvalidRequestError(
            f"Invalid value for '{name}': at most {bound}, {meaning}.", code="invalid_value", param=name
        )
