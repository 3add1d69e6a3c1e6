"""How a process logs: one line for each event on stderr, as JSON unless a person is reading.

Modules log with the standard library's `logging`, and give what belongs in fields of its own as `extra`;
structlog renders it: https://www.structlog.org/en/stable/standard-library.html
"""

from __future__ import annotations

import logging
import sys
from typing import Literal

import orjson
import structlog
from structlog.contextvars import bind_contextvars
from structlog.typing import EventDict, Processor, WrappedLogger

from app.core.control_characters import visible

LogFormat = Literal["auto", "json", "console"]
ProcessName = Literal["api", "worker", "tracking", "engine", "fleet"]

_FORMATTED = frozenset({"exception", "timestamp"})
"""What is not anybody else's text: tracebacks have lines of their own."""


def set_up_logging(process: ProcessName, log_format: LogFormat = "auto") -> None:
    """Let everything that this process logs, warnings among it, go to stderr in the given format.

    `auto` is JSON unless stderr is a terminal. Lines in JSON name the process.
    """
    is_console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.contextvars.merge_contextvars,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                structlog.processors.TimeStamper(fmt="iso", key="timestamp" if is_console else "time"),
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _drop_color_message,
                *(_for_console() if is_console else _for_machines(process)),
            ],
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)


def log_with(**fields: str) -> None:
    """Add these fields to everything that is logged for the rest of this request."""
    bind_contextvars(**fields)


def _for_console() -> list[Processor]:
    return [_escape_control_characters, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]


def _for_machines(process: ProcessName) -> list[Processor]:
    def add_process(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
        event["process"] = process
        return event

    return [add_process, structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_to_json)]


def _drop_color_message(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    event.pop("color_message", None)  # uvicorn's event once more, with colours
    return event


def _escape_control_characters(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Keep what a caller sent from looking like a line of the log, and a terminal from obeying it."""
    for name, value in event.items():
        if isinstance(value, str) and name not in _FORMATTED and not value.isprintable():
            event[name] = visible(value).replace("\n", "\\n")
    return event


def _to_json(event: EventDict, **_options: object) -> str:
    try:
        return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
    except orjson.JSONEncodeError:  # half a surrogate pair, or a number beyond 64 bits
        return orjson.dumps({name: _plain(value) for name, value in event.items()}).decode()


def _plain(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text.encode("utf-8", "backslashreplace").decode()
