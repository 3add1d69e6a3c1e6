"""Fewer points that draw the same line.

M4 keeps the first, the last, the lowest and the highest point of every pixel column, so the line that is
drawn is the same, and a spike of a single step among 100,000 stays visible: Jugel, Jerzak, Hackenbroich and
Markl, "M4: A Visualization-Oriented Time Series Data Aggregation", VLDB 2014
(https://www.vldb.org/pvldb/vol7/p797-jugel.pdf).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Indices = NDArray[np.intp]

POINTS_A_COLUMN = 4


def m4(x: Numbers, y: Numbers, columns: int) -> Indices:
    """Return the indices of the points to draw, ascending: at most four of every column.

    Args:
        x: ascending.
        y: as many numbers, none of them NaN.
        columns: the width of the picture in pixels.
    """
    if len(x) <= POINTS_A_COLUMN * columns:
        return np.arange(len(x), dtype=np.intp)
    first, counts = _split(x, columns)
    lowest = _first_equal(y, np.minimum.reduceat(y, first), counts)
    highest = _first_equal(y, np.maximum.reduceat(y, first), counts)
    return np.unique(np.concatenate((first, first + counts - 1, lowest, highest)))


def last_of_columns(x: Numbers, columns: int) -> Indices:
    """Return the index of the last point of every column: enough of a line without spikes, such as a mean."""
    if len(x) <= columns:
        return np.arange(len(x), dtype=np.intp)
    first, counts = _split(x, columns)
    return np.unique(np.append(first + counts - 1, 0))


def _split(x: Numbers, columns: int) -> tuple[Indices, Indices]:
    """Return the index of the first point of every column that has any, and how many it has."""
    width = (x[-1] - x[0]) or 1.0
    column = np.minimum((x - x[0]) * (columns / width), columns - 1).astype(np.intp)
    first = np.flatnonzero(np.diff(column, prepend=-1))
    return first, np.diff(first, append=len(x))


def _first_equal(y: Numbers, wanted: Numbers, counts: Indices) -> Indices:
    """Return, of every column, the index of the first point that has the column's wanted value."""
    found = np.flatnonzero(y == np.repeat(wanted, counts))
    column = np.repeat(np.arange(len(counts)), counts)[found]
    return found[np.flatnonzero(np.diff(column, prepend=-1))]
