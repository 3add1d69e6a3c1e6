"""How often a checkpoint is saved, by how long that takes."""

from __future__ import annotations

import math

import pytest

from workers.training.checkpoint_timer import checkpoint_interval


@pytest.mark.parametrize(
    ("save_seconds", "expected"),
    [
        (0.0, 5.0),  # not known yet, or nothing
        (0.02, 5.0),  # to lose less than five seconds is worth nothing
        (0.1, 10.0),  # 1 %
        (0.6, 60.0),  # 1 %, and a minute
        (1.0, math.sqrt(100 * 60)),  # between the minute and the 1 %
        (20.0, math.sqrt(2000 * 60)),
    ],
)
def test_saving_costs_one_percent_or_a_minute_is_lost(save_seconds: float, expected: float) -> None:
    assert checkpoint_interval(save_seconds, 60.0) == pytest.approx(expected)


def test_a_shorter_limit_is_kept() -> None:
    assert checkpoint_interval(0.001, 0.3) == pytest.approx(0.3)


def test_where_both_cannot_be_had_it_is_youngs_optimum() -> None:
    for save_seconds in (1.0, 7.0, 60.0):
        interval = checkpoint_interval(save_seconds, 60.0)
        assert interval == pytest.approx(math.sqrt(2 * save_seconds * 50 * 60.0))
        assert 60.0 < interval < 100 * save_seconds


def test_a_machine_that_fails_often_is_known_for_it() -> None:
    assert checkpoint_interval(0.2, 60.0, 90.0) == pytest.approx(6.0)
    assert checkpoint_interval(0.2, 60.0, 3600.0) == pytest.approx(20.0)  # the 1 % is more often
    assert checkpoint_interval(5.0, 60.0, 90.0) == pytest.approx(30.0)
