"""`toque projects`: creates, lists and archives projects, straight in the database."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ByteSize, Field

from app.cli.bounds import parse_bound
from app.cli.database_session import database_session, opened_database
from app.cli.limits import project_limits
from app.cli.output import AsJson, moment, print_fields, print_json, print_table, stderr
from app.cli.settings import read_settings

if TYPE_CHECKING:
    from app.auth.models import Project

app = typer.Typer(
    no_args_is_help=True, help="Manage projects; these commands need the database, not the service."
)

app.command("limits")(project_limits)

_LISTED_AT_ONCE = 100

ProjectId = Annotated[str, typer.Argument(metavar="PROJECT_ID", show_default=False)]
_Days = Annotated[str | None, typer.Option(metavar="DAYS|none", show_default=False)]
_Hours = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
_WholeDays = Annotated[int, Field(ge=1, le=36_500)]


@app.command()
def create(
    name: Annotated[str, typer.Argument(show_default=False, help="What people call it.")],
    as_json: AsJson = False,
) -> None:
    """Create a project.

    Example: toque projects create "Customer support"
    """
    from app.organization.service import create_project  # noqa: PLC0415 - SQLAlchemy is slow to import

    with database_session(read_settings()) as session:
        project = create_project(session, name)
    _print(project, as_json)


@app.command("list")
def list_projects(
    archived: Annotated[bool, typer.Option("--archived", help="Those that are archived, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the projects, newest first.

    Example: toque projects list
    """
    from app.organization.service import list_projects as page_of  # noqa: PLC0415 - as above

    projects: list[Project] = []
    with database_session(read_settings(), read_only=True) as session:
        has_more = True
        while has_more:
            after = projects[-1].id if projects else None
            page, has_more = page_of(session, include_archived=archived, after=after, limit=_LISTED_AT_ONCE)
            projects += page
    if as_json:
        print_json([_plain(project) for project in projects])
        return
    rows = [
        (each.id, each.title, each.name, moment(each.created_at), moment(each.archived_at))
        for each in projects
    ]
    print_table(("ID", "NAME", "IN MODEL NAMES", "CREATED", "ARCHIVED"), rows)


@app.command()
def archive(
    project_id: ProjectId,
    as_json: AsJson = False,
) -> None:
    """Archive a project: the service refuses its keys within three seconds, and what it has stays.

    Example: toque projects archive proj_abc123
    """
    from app.organization.service import archive_project  # noqa: PLC0415 - as above

    with database_session(read_settings()) as session:
        project = archive_project(session, project_id)
    _print(project, as_json)


@app.command()
def show(project_id: ProjectId, as_json: AsJson = False) -> None:
    """Show a project with its quotas, what it uses of them, and how long its data is kept.

    Example: toque projects show proj_abc123
    """
    from app.auth.service import get_project  # noqa: PLC0415 - as above
    from app.project_data.service import get_quotas  # noqa: PLC0415 - as above

    with database_session(read_settings(), read_only=True) as session:
        project, quotas = get_project(session, project_id), get_quotas(session, project_id)
    retention = project.retention_days or {}
    if as_json:
        print_json(_plain(project) | {"quotas": quotas.model_dump(), "retention": retention})
        return
    _print(project, as_json)
    print_fields(
        {
            "stored bytes": f"{quotas.stored_bytes:,} of {_bound(quotas.max_stored_bytes)}",
            "GPU-hours": f"{quotas.gpu_hours:,.2f} of {_bound(quotas.max_gpu_hours)} in this month",
            "kept": ", ".join(f"{kind} {days} days" for kind, days in retention.items()) or "everything",
        }
    )


@app.command()
def quotas(
    project_id: ProjectId,
    stored_bytes: Annotated[
        str | None,
        typer.Option(metavar="BYTES|none", show_default=False, help="The most it stores, such as 50GiB."),
    ] = None,
    gpu_hours: Annotated[
        str | None,
        typer.Option(
            metavar="HOURS|none",
            show_default=False,
            help="GPU-hours of a month that it may use.",
        ),
    ] = None,
) -> None:
    """Change a project's quotas.

    Example: toque projects quotas proj_abc123 --stored-bytes 50GiB --gpu-hours 100
    """
    from app.project_data.schemas import UpdateQuotas  # noqa: PLC0415 - as above
    from app.project_data.service import update_quotas  # noqa: PLC0415 - as above

    given: dict[str, object] = {}
    if stored_bytes is not None:
        given["max_stored_bytes"] = parse_bound(stored_bytes, "--stored-bytes", ByteSize)
    if gpu_hours is not None:
        given["max_gpu_hours"] = parse_bound(gpu_hours, "--gpu-hours", _Hours)
    with database_session(read_settings()) as session:
        changed = update_quotas(session, project_id, UpdateQuotas.model_validate(given))
    print_fields(changed.model_dump(exclude={"object"}))


@app.command()
def retention(
    project_id: ProjectId,
    files: _Days = None,
    outputs: _Days = None,
    checkpoints: _Days = None,
    logs: _Days = None,
) -> None:
    """Change for how many days a project's data is kept; workers delete it afterwards.

    Example: toque projects retention proj_abc123 --files 90 --logs none
    """
    from app.project_data.schemas import Retention, RetentionObject  # noqa: PLC0415 - as above
    from app.project_data.service import update_retention  # noqa: PLC0415 - as above

    options = {"files": files, "outputs": outputs, "checkpoints": checkpoints, "logs": logs}
    given = {
        kind: parse_bound(days, f"--{kind}", _WholeDays) for kind, days in options.items() if days is not None
    }
    with database_session(read_settings()) as session:
        changed = RetentionObject.of(update_retention(session, project_id, Retention.model_validate(given)))
    print_fields(changed.model_dump(exclude={"object"}))


@app.command()
def delete(
    project_id: ProjectId,
    yes: Annotated[bool, typer.Option("--yes", help="Delete it for good, without a question.")] = False,
) -> None:
    """Delete an archived project with all that it has, in the database and in the storage.

    Example: toque projects delete proj_abc123 --yes
    """
    from app.audit.recorder import this_user  # noqa: PLC0415 - as above
    from app.project_data.deletion import delete_project  # noqa: PLC0415 - as above
    from app.storage import open_storage  # noqa: PLC0415 - as above

    if not yes:
        typer.confirm(f"Delete {project_id} with all of its files, jobs and models, for good?", abort=True)
    settings = read_settings()
    with opened_database(settings) as database:
        delete_project(
            database, open_storage(settings), settings.data_dir / "trackers", this_user(), project_id
        )
        print_fields({"id": project_id, "deleted": "yes"})
        try:
            problem = None if database.scrub() else "it is busy"
        except sqlite3.Error as error:
            problem = str(error)
    if problem:
        stderr.print(f"Warning: what is deleted may still be read in the database's file: {problem}")


def _bound(most: float | None) -> str:
    return "any number" if most is None else f"{most:,}"


def _print(project: Project, as_json: bool) -> None:
    if as_json:
        print_json(_plain(project))
        return
    print_fields(
        {
            "id": project.id,
            "name": project.title,
            "in model names": project.name,
            "created": moment(project.created_at),
            "archived": moment(project.archived_at),
        }
    )


def _plain(project: Project) -> dict[str, object]:
    from app.organization.schemas import ProjectObject  # noqa: PLC0415 - as above

    return ProjectObject.of(project).model_dump()
