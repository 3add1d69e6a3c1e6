"""What routers ask for: settings, a session, the caller's project, a page of a list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, cast

from anyio import from_thread
from fastapi import Depends, Header, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session

from app.auth import service as auth_service
from app.auth.models import ApiKey, Project
from app.core.database import Database
from app.core.idempotency import CreationRequest
from app.core.settings import Settings
from app.storage.base import Storage

# Dependencies with `yield` end after the response unless declared with scope="function":
# a commit that fails must still be able to change the status.


def _settings(request: Request) -> Settings:
    return cast("Settings", request.app.state.settings)


def _database(request: Request) -> Database:
    return cast("Database", request.app.state.database)


def _storage(request: Request) -> Storage:
    return cast("Storage", request.app.state.storage)


SettingsDep = Annotated[Settings, Depends(_settings)]
DatabaseDep = Annotated[Database, Depends(_database)]
StorageDep = Annotated[Storage, Depends(_storage)]


def _read_session(database: DatabaseDep) -> Iterator[Session]:
    with database.reader() as session:
        yield session


def _write_session(database: DatabaseDep) -> Iterator[Session]:
    with database.writer() as session:
        yield session


ReadSession = Annotated[Session, Depends(_read_session, scope="function")]
"""For requests that change nothing."""
WriteSession = Annotated[Session, Depends(_write_session, scope="function")]
"""One transaction, committed when the route returns and rolled back when it raises."""

bearer = HTTPBearer(
    auto_error=False, description="An API key: `toque keys create`, or the one printed at first start"
)


def _project(
    database: DatabaseDep, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> Project:
    with database.reader() as session:
        return auth_service.authenticate(session, credentials.credentials if credentials else None)


def _key(
    database: DatabaseDep, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> ApiKey:
    with database.reader() as session:
        return auth_service.authenticate_key(session, credentials.credentials if credentials else None)[0]


def _creation(
    request: Request,
    project: Annotated[Project, Depends(_project, scope="function")],
    idempotency_key: Annotated[str | None, Header(max_length=255, min_length=1)] = None,
    x_stainless_retry_count: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> CreationRequest:
    count = x_stainless_retry_count
    return CreationRequest(
        project.id,
        idempotency_key,
        retry_count=int(count) if count is not None and count.isdecimal() and len(count) < 9 else None,
        is_abandoned=lambda: from_thread.run(request.is_disconnected),  # routes that create run in threads
    )


Creating = Annotated[CreationRequest, Depends(_creation, scope="function")]
"""For routes that create: finds what an equal request has created before."""
CurrentProject = Annotated[Project, Depends(_project, scope="function")]
CurrentKey = Annotated[ApiKey, Depends(_key, scope="function")]
"""For routes that write down who asked."""
