"""Spans of time as options of commands: `90s`, `30m`, `24h`, `7d`."""

from __future__ import annotations

import re

import typer

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST = 100 * 365 * 86_400


def parse_duration(text: str, option: str) -> int:
    """Returns the seconds of a span of time that an option was given.

    Raises:
        typer.BadParameter: it is none, or longer than a hundred years.
    """
    found = re.fullmatch(r"(\d{1,10})([smhd])", text.strip())
    seconds = int(found[1]) * _SECONDS[found[2]] if found else None
    if seconds is None or seconds > _LONGEST:
        raise typer.BadParameter(
            f"{text!r} is no span of time; write for example 30m, 24h or 90d.", param_hint=option
        )
    return seconds
