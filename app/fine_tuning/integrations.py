"""Integrations of a job: the trackers that its metrics are sent to besides its own log."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.core.errors import InvalidRequestError
from app.core.optional_field import OmittedIfNone
from app.core.settings import Settings

_PLAIN = r"^[^\x00-\x1f/\\#?%:]+$"
"""Text without what W&B refuses in the name of a project: https://docs.wandb.ai/models/track/project-page."""
PlainName = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=_PLAIN)]
RunName = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f]+$")]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f]+$")]


class WandbSettings(BaseModel):
    """The run in Weights & Biases that a job's metrics are sent to."""

    model_config = ConfigDict(extra="forbid")

    project: PlainName
    entity: OmittedIfNone[PlainName] = None
    """A user or a team that the operator has allowed; the default is that of the deployment's W&B key."""
    name: OmittedIfNone[RunName] = None
    """The run's name; the default is the job's id."""
    tags: OmittedIfNone[Annotated[list[Tag], Field(max_length=16, fail_fast=True)]] = None


class Integration(BaseModel):
    """An integration that is requested for one job."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["wandb"]
    wandb: WandbSettings


Integrations = Annotated[list[Integration], Field(max_length=1, fail_fast=True)]


def require_wandb(settings: Settings, integrations: list[Integration]) -> None:
    """Refuse an integration with W&B where metrics are not sent there, or not to the entity that it names.

    Raises:
        InvalidRequestError: the deployment's tracker is not W&B, or the operator has not allowed the entity.
    """
    if settings.tracker != "wandb":
        raise InvalidRequestError(
            "Metrics are not sent to W&B here: the operator has to set TOQUE_TRACKER=wandb first. Leave "
            "'integrations' out, and read the metrics in the job's events.",
            code="unsupported_parameter",
            param="integrations",
        )
    for number, integration in enumerate(integrations):
        entity = integration.wandb.entity
        if entity is not None and entity not in settings.tracker_entities:
            raise InvalidRequestError(
                f"Metrics are not sent to the entity '{entity}' here: leave 'entity' out, or have the "
                "operator add it to TOQUE_TRACKER_ENTITIES.",
                code="entity_not_allowed",
                param=f"integrations[{number}].wandb.entity",
            )
