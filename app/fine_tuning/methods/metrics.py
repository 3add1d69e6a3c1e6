"""The metrics of training steps: the one declaration that the trainer, the API and the result file share."""

from __future__ import annotations

import msgspec


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """The metrics of one step; those that were not measured at this step are None.

    `train_` is measured on the step's batch, `valid_` on a few validation examples, `full_valid_` on all of
    them. The names are OpenAI's, as far as OpenAI has the metric.
    """

    step: int
    train_loss: float | None = None
    """Nats per target token; for DPO, nats per pair."""
    train_mean_token_accuracy: float | None = None
    """The share of target tokens that the model finds most likely; for DPO, those of preferred answers."""
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None
    train_reward_accuracy: float | None = None
    """DPO only: the share of pairs whose preferred answer has the higher reward."""
    train_reward_margin: float | None = None
    """DPO only: the mean difference of the rewards of a pair's answers."""
    valid_reward_accuracy: float | None = None
    valid_reward_margin: float | None = None
    full_valid_reward_accuracy: float | None = None
    full_valid_reward_margin: float | None = None


RESULT_COLUMNS = {
    "step": "step",
    "train_loss": "train_loss",
    "train_accuracy": "train_mean_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": "valid_mean_token_accuracy",
}
"""The columns of a job's result file, named as OpenAI names them, and the metric in each."""
