"""The sentence that tells which checkpoint of a job to ship."""

from __future__ import annotations

from app.comparisons.report.figures import percent
from app.comparisons.results import CheckpointPoint


def checkpoint_sentence(
    top: CheckpointPoint, best: CheckpointPoint, final: CheckpointPoint, *, overfits: bool
) -> str:
    """Return what a checkpoint curve shows.

    Args:
        top: the checkpoint with the highest score.
        best: the checkpoint to ship: the earliest that is as good as `top`, but for chance.
        final: the model that the job published at its end.
        overfits: whether an earlier checkpoint is shown to be better than `final`.
    """
    if overfits:
        return (
            f"Training went on too long: step {top.step} scores {percent(top.score)}, the final "
            f"model {percent(final.score)}. Ship step {best.step}."
        )
    if best == final:
        return f"The final model (step {final.step}) is the one to ship; more steps may still help."
    return (
        f"Step {best.step} is as good as any, and the first that is: {percent(best.score)}, "
        f"the final model {percent(final.score)}. No overfitting is shown."
    )
