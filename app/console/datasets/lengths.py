"""The lengths of a file's examples beside what a base model can read at once."""

from __future__ import annotations

from dataclasses import dataclass

from app.datasets.report import TokenLengths


@dataclass(frozen=True, slots=True)
class Bar:
    """The examples whose lengths are in one range."""

    least: int
    most: int
    examples: int
    is_over: bool
    """Whether all of them are too long for the base model."""
    has_context: bool
    """Whether the base model's context ends in this range."""


def length_bars(lengths: TokenLengths) -> list[Bar]:
    """Return the histogram from the first range with examples to the last, or to the end of the context."""
    counts = {one.up_to: one.examples for one in lengths.histogram}
    edges = sorted(counts)
    while edges[-1] < lengths.context:
        edges.append(edges[-1] * 2)
    first = next(at for at, edge in enumerate(edges) if counts.get(edge))
    bars: list[Bar] = []
    for at in range(first, len(edges)):
        least, most = (edges[at - 1] + 1 if at else 1), edges[at]
        bars.append(
            Bar(
                least,
                most,
                counts.get(most, 0),
                is_over=least > lengths.context,
                has_context=least <= lengths.context <= most,
            )
        )
    return bars
