"""`toque audit`: who has changed what, straight from the database."""

from __future__ import annotations

import typer

from app.cli.database_session import database_session
from app.cli.output import print_json_line
from app.cli.settings import read_settings

app = typer.Typer(
    no_args_is_help=True, help="Who has changed what; these commands need the database, not the service."
)


@app.command()
def export() -> None:
    """Print every change as a line of JSON, oldest first.

    Example: toque audit export > audit.jsonl
    """
    from app.audit.schemas import AuditLogObject  # noqa: PLC0415 - SQLAlchemy is slow to import
    from app.audit.service import export_logs  # noqa: PLC0415 - as above

    with database_session(read_settings(), read_only=True) as session:
        for log in export_logs(session):
            print_json_line(AuditLogObject.of(log).model_dump(mode="json"))
