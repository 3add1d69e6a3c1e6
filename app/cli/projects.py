"""`toque projects`: creates, lists and archives projects, straight in the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.database_session import database_session
from app.cli.output import AsJson, moment, print_fields, print_json, print_table
from app.cli.settings import read_settings

if TYPE_CHECKING:
    from app.auth.models import Project

app = typer.Typer(
    no_args_is_help=True, help="Manage projects; these commands need the database, not the service."
)

_LISTED_AT_ONCE = 100


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
    project_id: Annotated[str, typer.Argument(metavar="PROJECT_ID", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Archive a project: the service refuses its keys within three seconds, and what it has stays.

    Example: toque projects archive proj_abc123
    """
    from app.organization.service import archive_project  # noqa: PLC0415 - as above

    with database_session(read_settings()) as session:
        project = archive_project(session, project_id)
    _print(project, as_json)


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
