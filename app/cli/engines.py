"""`toque engines`: lists the engines, from the database, the settings and the engines themselves."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from app.cli.database_session import database_session
from app.cli.output import AsJson, print_json, print_table
from app.cli.settings import read_settings

if TYPE_CHECKING:
    from app.completions.engine_reports import EngineReport


def engines(as_json: AsJson = False) -> None:
    """List the engines of the whole deployment, with the load and the adapters that each reports.

    Example: toque engines
    """
    from app.completions.engine_reports import ask_engines, list_engines  # noqa: PLC0415 - slow to import

    settings = read_settings()
    with database_session(settings, read_only=True) as session:
        found = list_engines(session, settings)
    asyncio.run(ask_engines(found))
    reports = [report for report, _ in found]
    if as_json:
        print_json([_plain(report) for report in reports])
        return
    rows = [
        (
            report.id,
            report.base_model,
            report.url,
            report.device,
            report.status if not report.detail else f"{report.status}: {report.detail}",
            report.running,
            report.waiting,
            None if report.tokens_per_second is None else f"{report.tokens_per_second:.0f}",
            None if report.adapters is None else "\n".join(report.adapters) or "none",
        )
        for report in reports
    ]
    columns = ("ID", "BASE", "URL", "DEVICE", "STATUS", "RUNNING", "QUEUE", "TOK/S", "ADAPTERS")
    print_table(columns, rows)


def _plain(report: EngineReport) -> dict[str, object]:
    return {
        "id": report.id,
        "base_model": report.base_model,
        "url": report.url,
        "device": report.device,
        "version": report.version,
        "status": report.status,
        "detail": report.detail,
        "requests_running": report.running,
        "requests_waiting": report.waiting,
        "tokens_per_second": report.tokens_per_second,
        "adapters": report.adapters,
    }
