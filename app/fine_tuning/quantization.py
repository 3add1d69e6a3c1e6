"""Base models in four bits while they are trained: which can be, and what a job's log says about it."""

from __future__ import annotations

from typing import Any

from app.core.errors import InvalidRequestError
from app.core.settings import BaseModelEntry, Settings
from app.fine_tuning.geometry import Geometry
from app.models.catalogue import is_prepared

NOTE = "The base model's linear layers are stored in NF4 while it is trained; the model is served on bf16"
"""What the log of a job with `quantization` says."""


def require_packable(settings: Settings, base: BaseModelEntry, hyperparameters: dict[str, Any]) -> None:
    """Check that the base model can be quantized as the job asks, if it is prepared on this machine.

    Raises:
        InvalidRequestError: it cannot; the message says why.
    """
    if hyperparameters["quantization"] == "none" or not is_prepared(settings, base):
        return
    if problem := Geometry.load(settings.base_model_dir(base)).unpackable:
        raise InvalidRequestError(
            f"Invalid value for 'quantization': '{base.name}' cannot be trained in nf4: {problem}. "
            "Set 'none', or leave it out.",
            code="invalid_value",
            param="quantization",
        )
