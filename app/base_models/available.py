"""Which of the known base models a machine can train and serve."""

from __future__ import annotations

from pydantic import BaseModel

from app.base_models.known import KnownBaseModel, known_base_models
from app.base_models.memory import engine_gpu_share, needs
from app.core.settings import Settings
from app.models.catalogue import Catalogue


class Fit(BaseModel):
    """Whether something fits into a machine's memory."""

    fits: bool
    needs_bytes: int
    has_bytes: int


class AvailableModel(BaseModel):
    """A known base model, as `toque models list --available` shows it."""

    name: str
    source: str
    parameters: int
    licence: str
    gated: bool
    context: int
    tool_parser: str | None
    reasoning_parser: str | None
    in_catalogue: bool
    training: Fit
    training_nf4: Fit | None
    """None if too few of its weights can be stored in four bits."""
    serving: Fit
    command: str


def available_models(
    settings: Settings, catalogue: Catalogue, memory_bytes: int, *, is_gpu: bool
) -> list[AvailableModel]:
    """Compare every known base model with a machine whose GPU, or else CPU, has that much memory."""
    share = engine_gpu_share(settings) if is_gpu else 1.0
    in_turns = not is_gpu or bool(settings.shared_device)
    for_engine = int(share * memory_bytes)
    for_trainer = memory_bytes if in_turns else memory_bytes - for_engine
    return [
        _compare(known, settings, catalogue, for_trainer, for_engine, is_gpu=is_gpu)
        for known in known_base_models()
    ]


def _compare(
    known: KnownBaseModel,
    settings: Settings,
    catalogue: Catalogue,
    for_trainer: int,
    for_engine: int,
    *,
    is_gpu: bool,
) -> AvailableModel:
    needed = needs(known, settings, is_gpu=is_gpu)

    def fit(needs_bytes: int, has_bytes: int) -> Fit:
        return Fit(fits=needs_bytes <= has_bytes, needs_bytes=needs_bytes, has_bytes=has_bytes)

    return AvailableModel(
        name=known.name,
        source=known.source,
        parameters=known.parameters,
        licence=known.licence,
        gated=known.gated,
        context=known.context,
        tool_parser=known.tool_parser,
        reasoning_parser=known.reasoning_parser,
        in_catalogue=catalogue.find(known.name) is not None,
        training=fit(needed.training, for_trainer),
        training_nf4=None if known.geometry.unpackable else fit(needed.training_nf4, for_trainer),
        serving=fit(needed.serving, for_engine),
        command=f"toque models pull {known.name}",
    )
