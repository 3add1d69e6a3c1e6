"""What this machine knows of the base model that a job is to train."""

from __future__ import annotations

from dataclasses import dataclass

from app.core.errors import InvalidRequestError
from app.core.settings import BaseModelEntry, Settings
from app.models.adapters.base_shapes import base_has_experts, linear_modules
from app.models.catalogue import hidden_size, reading_files
from app.models.serving_support import refusal


@dataclass(frozen=True, slots=True)
class KnownBase:
    """What is read of a base model's files before a job on it is created."""

    hidden_size: int | None
    """Its width; None if it is not prepared on this machine."""
    modules: list[str] | None
    """The full names of its linear modules; None as above."""
    has_experts: bool
    """Whether it is a mixture of experts; False, too, if it is not prepared on this machine."""

    @classmethod
    def read(cls, settings: Settings, base: BaseModelEntry) -> KnownBase:
        """Read the base model's configuration and the headers of its weights.

        Raises:
            InvalidRequestError: vLLM does not serve adapters of this base model.
            UnavailableError: its files are damaged, or cannot be read now.
        """
        with reading_files(base):
            reason = refusal(settings.base_model_dir(base))
            width = hidden_size(settings, base)
        if reason:
            raise InvalidRequestError(
                f"'{base.name}' cannot be fine-tuned here: {reason}.",
                code="unsupported_base_model",
                param="model",
            )
        return cls(width, linear_modules(settings, base), base_has_experts(settings, base))
