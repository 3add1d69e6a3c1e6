"""Why a job failed, for its owner."""

from __future__ import annotations

import errno

from workers.training.learning import TrainingDivergedError
from workers.training.memory import is_out_of_memory
from workers.training.model import UnsupportedBaseError
from workers.training.protocol import Failed, TrainingSpec, out_of_memory


class UntrainableError(Exception):
    """The job cannot be trained, on any rank; if a file or model is the reason, `param` says which."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


def unsupported(spec: TrainingSpec, error: UnsupportedBaseError) -> UntrainableError:
    """Why no adapter can be trained on the base model."""
    message = f"No adapter can be trained on '{spec.base_model}': {error}."
    return UntrainableError("unsupported_base_model", message, "model")


def explain(error: Exception, spec: TrainingSpec) -> Failed:
    """Explain to the user why the job failed."""
    hp = spec.hyperparameters
    if isinstance(error, UntrainableError):
        return Failed(code=error.code, message=str(error), param=error.param)
    if isinstance(error, TrainingDivergedError):
        return Failed(
            code="training_diverged",
            message=f"The loss is no longer a number at learning rate {hp.learning_rate:g}. Lower "
            "learning_rate_multiplier (or learning_rate), for instance to a tenth, or raise batch_size.",
        )
    if is_out_of_memory(error):
        return out_of_memory(hp)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failed(code="storage_full", message="a checkpoint does not fit on the storage.")
    if isinstance(error, OSError):
        return Failed(
            code="storage_unusable",
            message=f"A worker cannot read or write a file ({error}); every process needs the same storage",
        )
    return Failed(
        code="internal_error",
        message=f"The trainer failed ({type(error).__name__}); its log has the details.",
    )
