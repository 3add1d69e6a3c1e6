"""Fewer points must draw the same picture."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from app.console.jobs.downsampling import POINTS_A_COLUMN, last_of_columns, m4
from app.console.jobs.points import running_mean

heights = arrays(np.float64, st.integers(1, 400), elements=st.floats(-1e6, 1e6, width=32))
columns = st.integers(1, 40)
seeds = st.integers(0, 1000)


def ascending(count: int, seed: int) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).integers(1, 50, count)).astype(np.float64)


@given(heights, columns, seeds)
def test_few_points_in_order_with_both_ends(y: np.ndarray, count: int, seed: int) -> None:
    kept = m4(ascending(len(y), seed), y, count)
    assert len(kept) <= POINTS_A_COLUMN * count
    assert (np.diff(kept) > 0).all()
    assert (kept[0], kept[-1]) == (0, len(y) - 1)


@given(heights, columns, seeds)
def test_every_column_keeps_its_extremes(y: np.ndarray, count: int, seed: int) -> None:
    x = ascending(len(y), seed)
    kept = m4(x, y, count)
    column = np.minimum((x - x[0]) * (count / ((x[-1] - x[0]) or 1)), count - 1).astype(int)
    for each in np.unique(column):
        drawn = y[kept][column[kept] == each]
        assert (drawn.min(), drawn.max()) == (y[column == each].min(), y[column == each].max())


def test_a_spike_of_one_step_among_100_000_is_drawn() -> None:
    x = np.arange(1.0, 100_001.0)
    y = np.ones(100_000)
    y[77_777] = 9.0
    kept = m4(x, y, 800)
    assert y[kept].max() == 9.0
    assert len(kept) <= 3200


@given(heights, columns, seeds)
def test_a_smooth_line_keeps_one_point_a_column_and_both_ends(y: np.ndarray, count: int, seed: int) -> None:
    kept = last_of_columns(ascending(len(y), seed), count)
    assert len(kept) <= count + 1
    assert (np.diff(kept) > 0).all()
    assert (kept[0], kept[-1]) == (0, len(y) - 1)


def test_the_running_mean_is_of_the_last_steps() -> None:
    assert running_mean(np.array([1.0, 2.0, 3.0, 10.0]), 2).tolist() == [1.0, 1.5, 2.5, 6.5]
