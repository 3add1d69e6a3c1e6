"""`toque projects limits` and `toque keys limits`: shows and sets rate limits, straight in the database."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from pydantic import BeforeValidator, Field

from app.cli.bounds import parse_bound
from app.cli.database_session import database_session
from app.cli.output import AsJson, print_json, print_table
from app.cli.settings import read_settings

_OPTIONS = {
    "--requests": "max_requests_per_1_minute",
    "--tokens": "max_tokens_per_1_minute",
    "--concurrent": "max_concurrent_requests",
}
ProjectId = Annotated[str, typer.Argument(metavar="PROJECT_ID", show_default=False)]
KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", show_default=False)]
Model = Annotated[str, typer.Option(help="A base model with what is fine-tuned from it, or all together.")]
Requests = Annotated[
    str | None, typer.Option(metavar="N", show_default="as it is", help="Requests a minute, or none.")
]
Tokens = Annotated[
    str | None, typer.Option(metavar="N", show_default="as it is", help="Tokens a minute, or none.")
]
Concurrent = Annotated[
    str | None, typer.Option(metavar="N", show_default="as it is", help="Requests at the same time, or none.")
]


def _only_digits(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError("not a number in digits")
    return int(text)


_Most = Annotated[int, BeforeValidator(_only_digits), Field(ge=1, le=2**53)]


def project_limits(
    project_id: ProjectId,
    model: Model = "all",
    requests: Requests = None,
    tokens: Tokens = None,
    concurrent: Concurrent = None,
    as_json: AsJson = False,
) -> None:
    """Show what a project may ask, and set it if it is given; `none` lifts a limit.

    Example: toque projects limits proj_abc123 --requests 600 --tokens 200000
    """
    _show(project_id, "", model, (requests, tokens, concurrent), as_json)


def key_limits(
    key_id: KeyId,
    model: Model = "all",
    requests: Requests = None,
    tokens: Tokens = None,
    concurrent: Concurrent = None,
    as_json: AsJson = False,
) -> None:
    """Show what a key may ask, beside what its project may, and set it if it is given; `none` lifts a limit.

    Example: toque keys limits key_abc123 --concurrent 4
    """
    from app.auth.models import ApiKey  # noqa: PLC0415 - SQLAlchemy is slow to import

    with database_session(read_settings(), read_only=True) as session:
        key = session.get(ApiKey, key_id)
    if key is None:
        raise typer.BadParameter(f"there is no key '{key_id}'; `toque keys list` shows them")
    _show(key.project_id, key_id, model, (requests, tokens, concurrent), as_json)


def _show(project_id: str, key_id: str, model: str, given: tuple[str | None, ...], as_json: bool) -> None:
    from app.limits.schemas import RateLimitObject, UpdateRateLimit  # noqa: PLC0415 - as above
    from app.limits.service import list_limits, set_limit  # noqa: PLC0415 - as above

    change: dict[str, Any] = {
        field: parse_bound(text, option, _Most)
        for (option, field), text in zip(_OPTIONS.items(), given, strict=True)
        if text is not None
    }
    settings = read_settings()
    with database_session(settings, read_only=not change) as session:
        if change:
            set_limit(session, settings, project_id, model, UpdateRateLimit(**change), key_id)
        limits = [RateLimitObject.of(each) for each in list_limits(session, settings, project_id, key_id)]
    if as_json:
        print_json([each.model_dump() for each in limits])
        return
    rows = [(each.model, *(_shown(getattr(each, field)) for field in _OPTIONS.values())) for each in limits]
    print_table(("MODEL", "REQUESTS A MINUTE", "TOKENS A MINUTE", "AT THE SAME TIME"), rows)


def _shown(most: int | None) -> str:
    return "unlimited" if most is None else f"{most:,}"
