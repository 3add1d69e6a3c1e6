"""How the console writes numbers and times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def number(value: float) -> str:
    """Write a number with its thousands apart; fractions have three significant digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}"


def percent(share: float) -> str:
    """Write a share of one as a percentage."""
    return f"{share * 100:.1f} %".replace("-", "−")


def size(count: int) -> str:
    """Write a number of bytes in the unit that fits."""
    value, unit = float(count), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{count} bytes" if unit == 0 else f"{value:.3g} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """Write a time span by its two largest units."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h" if hours else f"{days} days"


def iso(unix: float) -> str:
    """Write a time (seconds since the epoch) as machines read it."""
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def utc(unix: float) -> str:
    """Write a time for readers whose browser runs no script."""
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M UTC")


def name_parts(name: str) -> Sequence[tuple[str, bool]]:
    """Return the parts of a served name, each with whether it stays where there is too little room.

    Its readers know a model by its suffix, or else by its id, and a checkpoint also by its step.
    """
    parts = name.split(":")
    if parts[0] != "ft" or len(parts) < 5:
        middle = len(name) - 16 if len(name) > 24 else 0
        return [(name[:middle], False), (name[middle:], True)]
    base, suffix, id_, step = ":".join(parts[:3]) + ":", parts[3], ":" + parts[4], "".join(parts[5:])
    return [(base, False), (suffix, True), (id_, not suffix), (f":{step}" if step else "", True)]


def watch_query(watched: Sequence[str]) -> str:
    """Write what a page watches as the query of its events."""
    return urlencode([("watch", each) for each in watched])


FILTERS: Mapping[str, Callable[..., Any]] = {
    each.__name__: each for each in (number, percent, size, duration, iso, utc, name_parts, watch_query)
}
