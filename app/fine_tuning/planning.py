"""Plans a job: checks all of its request that can be checked without a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from app.context import Context
from app.core.database import Database
from app.core.errors import InvalidRequestError
from app.datasets.report import MIN_EXAMPLES
from app.fine_tuning import training_files
from app.fine_tuning.hold_out.split import Choice
from app.fine_tuning.integrations import require_wandb
from app.fine_tuning.known_base import KnownBase
from app.fine_tuning.methods import DEFAULT_METHOD, METHODS
from app.fine_tuning.plan import JobPlan
from app.fine_tuning.quantization import require_packable
from app.fine_tuning.requested_hyperparameters import (
    LoraHyperparameters,
    RequestedHyperparameters,
    resolve_hyperparameters,
)
from app.fine_tuning.schemas import CreateJob
from app.models.adapters.parent import Parent
from app.models.aliases.resolution import find_model_to_train
from app.models.catalogue import Catalogue


def plan_job(
    database: Database,
    context: Context,
    request: CreateJob,
    choice: Choice | None,
    *,
    is_dry_run: bool = False,
) -> JobPlan:
    """Return the job that the request asks for; `choice` says what its hold-out leaves for training.

    Raises:
        InvalidRequestError: a parameter or a training example is wrong.
        NotFoundError: the model or a file does not exist.
        FailedDependencyError: the model to continue from is quarantined or damaged.
        UnavailableError: the base model's files are damaged, or the storage does not have a file.
    """
    settings = context.settings
    method, requested = _method(request)
    if request.integrations:
        require_wandb(settings, request.integrations)
    named = {"training_file": request.training_file}
    if choice is None and request.validation_file is not None:
        named["validation_file"] = request.validation_file
    with database.reader() as session:
        model = find_model_to_train(session, context, request.model)
        parent = model if isinstance(model, Parent) else None
        name = model.base_model if isinstance(model, Parent) else model
        base = Catalogue.read(session, settings).get(name)
        files = {
            param: training_files.find_training_file(session, context.project_id, file_id, param)
            for param, file_id in named.items()
        }
    # Errors that do not depend on the files' content come first.
    known = KnownBase.read(settings, base)
    resolved = resolve_hyperparameters(
        requested,
        examples=MIN_EXAMPLES,
        base=base,
        hidden_size=known.hidden_size,
        modules=known.modules,
        method=method,
        parent=parent,
    )
    require_packable(settings, base, resolved)
    if parent is not None:
        requested |= parent.hyperparameters
    training_file = files["training_file"]
    examples = choice.examples if choice else training_file.examples or 0
    plan = JobPlan(
        base,
        parent,
        method,
        requested,
        training_file,
        files.get("validation_file"),
        examples,
        has_experts=known.has_experts,
    )
    if plan.waits:
        return plan
    return replace(
        plan, hyperparameters=training_files.resolve(database, context, plan, is_dry_run=is_dry_run)
    )


def _method(request: CreateJob) -> tuple[str, dict[str, Any]]:
    """Return the method's name and the requested hyperparameters, from the three places that may hold any."""
    method = request.method.type if request.method else DEFAULT_METHOD
    if method not in METHODS:
        raise InvalidRequestError(
            f"The method '{method}' is not supported; supported: {', '.join(METHODS)}.",
            code="unsupported_method",
            param="method.type",
        )
    places: list[tuple[str, LoraHyperparameters | None]] = [
        (f"method.{method}.hyperparameters.", _of_method(request, method)),
        ("hyperparameters.", request.hyperparameters),
        (
            "",
            LoraHyperparameters(
                **{name: getattr(request, name) for name in LoraHyperparameters.model_fields}
            ),
        ),
    ]
    merged: dict[str, Any] = {}
    for prefix, place in places:
        for name, value in (place.model_dump(exclude_none=True) if place else {}).items():
            if merged.get(name, value) != value:
                raise InvalidRequestError(
                    f"'{name}' is given twice, with different values.",
                    code="invalid_value",
                    param=prefix + name,
                )
            merged[name] = value
    return method, merged


def _of_method(request: CreateJob, method: str) -> RequestedHyperparameters | None:
    for name in METHODS:
        if name != method and request.method and getattr(request.method, name) is not None:
            raise InvalidRequestError(
                f"The method is '{method}': it takes no settings of '{name}'.",
                code="invalid_value",
                param=f"method.{name}",
            )
    settings = getattr(request.method, method) if request.method else None
    return settings.hyperparameters if settings else None
