"""What the sentences above the pictures claim, and when they claim nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sqlalchemy.orm.attributes import set_committed_value

from app.console.jobs.curves import Curves
from app.console.jobs.overlay_reading import read_overlay
from app.console.jobs.readings import read_picture, scatter
from app.files.models import File
from app.fine_tuning.models import Checkpoint, FineTuningJob


def curves(**columns: Any) -> Curves:
    length = max(map(len, columns.values()))
    steps = np.arange(1.0, length + 1)
    return Curves({"step": steps} | {name: np.array(values, float) for name, values in columns.items()})


def evaluated(values: list[float], every: int = 10) -> list[float]:
    """Evaluations every so many steps, and nothing between."""
    column = [float("nan")] * (len(values) * every)
    column[every - 1 :: every] = values
    return column


def checkpoints(*steps: int) -> list[Checkpoint]:
    return [Checkpoint(id=f"c{step}", step_number=step) for step in steps]


FALLING = list(2 + np.random.default_rng(1).normal(0, 0.05, 200) - np.linspace(0, 1, 200))
LEVEL = list(2 + np.random.default_rng(1).normal(0, 0.05, 200))


def test_training_loss_that_falls_is_told_from_one_that_scatters() -> None:
    assert (
        "Training loss fell: 1.95 in the first 20 steps, 1.0"
        in read_picture("loss", curves(train_loss=FALLING), []).text
    )
    level = read_picture("loss", curves(train_loss=LEVEL), []).text
    assert "has not changed by more than its scatter" in level
    assert "fell" not in level


def test_few_points_claim_nothing() -> None:
    reading = read_picture(
        "loss", curves(train_loss=[2.0, 1.0, 0.5] * 3 + [0.1], valid_loss=evaluated([0.9])), []
    )
    assert reading.text == (
        "10 steps so far: too few to say where training loss goes. "
        "Validation loss was measured 1 time, last 0.9 at step 10: too few to say where it is best."
    )
    assert reading.better is None


def test_validation_loss_that_has_risen_names_the_checkpoint_nearest_to_its_lowest() -> None:
    values = [1.5, 1.2, 1.0, 0.9, 0.95, 1.05, 1.2, 1.4]
    found = curves(train_loss=FALLING[:80], valid_loss=evaluated(values))
    reading = read_picture("loss", found, checkpoints(30, 45, 80))
    assert (
        "Validation loss was lowest at step 40 (0.9) and has risen since, to 1.4 at step 80" in reading.text
    )
    assert "8 evaluations on a few validation examples" in reading.text
    assert reading.better is not None
    assert reading.better.step_number == 45


def test_a_rise_within_the_scatter_advises_nothing() -> None:
    values = [1.5, 1.0, 1.1, 0.95, 1.08, 0.97, 1.09, 1.0]
    reading = read_picture("loss", curves(valid_loss=evaluated(values)), checkpoints(40, 80))
    assert "not worse by more than its scatter" in reading.text
    assert reading.better is None


def test_the_last_checkpoint_is_not_called_better_than_itself() -> None:
    values = [1.5, 1.2, 1.0, 0.9, 0.95, 1.05, 1.2, 1.4]
    assert read_picture("loss", curves(valid_loss=evaluated(values)), checkpoints(80)).better is None
    assert read_picture("loss", curves(valid_loss=evaluated(values)), []).better is None


def test_accuracy_is_best_where_it_is_highest() -> None:
    found = curves(full_valid_mean_token_accuracy=evaluated([0.5, 0.6, 0.7, 0.75, 0.8]))
    text = read_picture("mean_token_accuracy", found, []).text
    assert (
        "Validation accuracy is highest now: 0.8 at step 50 (5 evaluations on all validation examples)"
        in text
    )


def test_without_validation_it_is_said_what_that_would_be_good_for() -> None:
    text = read_picture("loss", curves(train_loss=FALLING), []).text
    assert "No validation loss has been measured so far; it would say when to stop." in text


@pytest.mark.parametrize("slope", [0.0, 0.05])
def test_scatter_is_the_noise_whatever_the_trend(slope: float) -> None:
    noise = np.random.default_rng(3).normal(0, 0.1, 2000)
    assert scatter(noise + slope * np.arange(2000)) == pytest.approx(0.1, rel=0.1)


def test_speed_leaves_out_what_spans_a_resumption() -> None:
    found = curves(
        trained_tokens=[100, 200, 300, 400], elapsed_seconds=[1.0, 2.0, 1.5, 2.0]
    )  # resumed after step 2, on a machine twice as fast
    steps, speeds = found.speed(1)
    assert (steps.tolist(), speeds.tolist()) == ([2, 4], [100.0, 200.0])
    steps, speeds = found.speed(10)
    assert steps.tolist() == [2]


def test_equal_evaluations_are_best_now() -> None:
    found = curves(valid_mean_token_accuracy=evaluated([0.5] * 6))
    assert "highest now: 0.5 at step 60" in read_picture("mean_token_accuracy", found, []).text


def job(validation: str | None = "same", method: str = "supervised") -> FineTuningJob:
    file = File(sha256=validation) if validation else None
    row = FineTuningJob(method=method)
    set_committed_value(row, "validation_file", file)
    return row


BETTER = curves(full_valid_loss=evaluated([1.5, 1.2, 1.0, 0.9, 0.85, 0.82]))
WORSE = curves(full_valid_loss=evaluated([1.5, 1.4, 1.3, 1.25, 1.22, 1.2]))


@pytest.mark.parametrize(
    ("second", "curve", "said"),
    [
        (job(), WORSE, "The lowest validation loss is that of a, 0.82 at step 60; then b, 1.2 at step 60."),
        (job(), WORSE, "The first two differ by more than their scatter"),
        (job(), BETTER, "The first two differ by less than their scatter"),
        (job(), curves(full_valid_loss=evaluated([1.0, 0.9])), "too few evaluations to say"),
        (job(), curves(train_loss=FALLING), "open until all are evaluated on all examples: b."),
        (job("other"), WORSE, "evaluated on different examples"),
        (job(None), WORSE, "Not all of them have validation data"),
        (job(method="dpo"), WORSE, "trained by different methods"),
    ],
)
def test_an_overlay_says_which_is_better_only_if_that_can_be_told(
    second: FineTuningJob, curve: Curves, said: str
) -> None:
    assert said in read_overlay([("a", job(), BETTER), ("b", second, curve)])
