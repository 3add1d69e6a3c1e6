"""The plan of a job: what its request comes to once every name in it is resolved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.core.settings import BaseModelEntry
from app.files.models import File
from app.models.adapters.parent import Parent


@dataclass(frozen=True, slots=True)
class JobPlan:
    """A job as it would be created."""

    base: BaseModelEntry
    parent: Parent | None
    method: str
    hyperparameters: dict[str, Any]
    """As requested; `training_files.resolve` says what they become once the files are checked."""
    training_file: File
    validation_file: File | None
    """None, too, if the validation file is a hold-out that is still to be made."""
    examples: int
    """Training examples; 0 if that is not known yet."""
    has_experts: bool = False
    """Whether the base model is known to be a mixture of experts, which are not adapted."""

    @property
    def files(self) -> dict[str, File]:
        """The files by the request's field that names them."""
        files = {"training_file": self.training_file, "validation_file": self.validation_file}
        return {param: file for param, file in files.items() if file is not None}

    @property
    def gpus(self) -> int:
        """The GPUs that the job needs."""
        requested = self.hyperparameters.get("gpus")
        return requested if isinstance(requested, int) else 1  # `auto` is 1

    @property
    def waits(self) -> bool:
        """Whether a file is still being checked."""
        return any(file.status == "uploaded" for file in self.files.values())
