"""The figures of several rounds, in which two ways of doing the same take turns."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table


def print_medians(results: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Prints a table with each figure's median, least and most; returns the medians.

    `results` has for each way the figures of its rounds, by name.
    """
    table = Table("", *results)
    medians: dict[str, dict[str, float]] = {way: {} for way in results}
    for name in next(iter(results.values()))[0]:
        cells: list[str] = []
        for way, rounds in results.items():
            values = [each[name] for each in rounds]
            medians[way][name] = round(statistics.median(values), 3)
            cells.append(f"{medians[way][name]:,.2f} ({min(values):,.2f} to {max(values):,.2f})")
        table.add_row(name, *cells)
    Console().print(table)
    return medians
