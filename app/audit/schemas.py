"""The audit log on the wire, as OpenAI has it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.audit.models import AuditLog
from app.core.optional_field import OmittedIfNone
from app.core.pagination import Identified

Texts = Annotated[list[str], Field(max_length=100)]
Seconds = Annotated[int, Field(ge=0, le=2**53)]


class AuditLogQuery(BaseModel):
    """Which changes to list."""

    after_time: Annotated[Seconds | None, Field(alias="effective_at[gt]")] = None
    from_time: Annotated[Seconds | None, Field(alias="effective_at[gte]")] = None
    before_time: Annotated[Seconds | None, Field(alias="effective_at[lt]")] = None
    to_time: Annotated[Seconds | None, Field(alias="effective_at[lte]")] = None
    project_ids: Annotated[Texts, Field(alias="project_ids[]")] = []
    event_types: Annotated[Texts, Field(alias="event_types[]")] = []
    actor_ids: Annotated[Texts, Field(alias="actor_ids[]")] = []
    resource_ids: Annotated[Texts, Field(alias="resource_ids[]")] = []
    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class ApiKeyActor(BaseModel):
    """An API key that a change was requested with."""

    id: str
    type: Literal["service_account"] = "service_account"


class User(BaseModel):
    """A user of the operating system."""

    id: str


class SessionActor(BaseModel):
    """A command on a machine of the deployment."""

    user: User
    ip_address: OmittedIfNone[str] = None
    """The name of the machine."""


class ActorObject(BaseModel):
    """Who made a change."""

    type: Literal["api_key", "session"]
    api_key: OmittedIfNone[ApiKeyActor] = None
    session: OmittedIfNone[SessionActor] = None


class ProjectReference(BaseModel):
    """The project whose resource was changed."""

    id: str


class AuditLogObject(Identified):
    """One change. What was changed is in a field that is named after `type`."""

    model_config = ConfigDict(extra="allow")

    object: Literal["organization.audit_log"] = "organization.audit_log"
    type: str
    effective_at: int
    actor: ActorObject
    project: OmittedIfNone[ProjectReference] = None
    ip_address: OmittedIfNone[str] = None
    """Where the request came from."""
    before: dict[str, Any]
    after: dict[str, Any]

    @classmethod
    def of(cls, log: AuditLog) -> AuditLogObject:
        """Return the row as the API shows it."""
        is_key = log.actor_type == "api_key"
        session = SessionActor(user=User(id=log.actor_id), ip_address=log.address)
        details: dict[str, Any] = {log.type: {"id": log.resource_id}}
        return cls(
            id=log.id,
            type=log.type,
            effective_at=int(log.effective_at),
            actor=ActorObject(
                type=log.actor_type,
                api_key=ApiKeyActor(id=log.actor_id) if is_key else None,
                session=None if is_key else session,
            ),
            project=ProjectReference(id=log.project_id) if log.project_id else None,
            ip_address=log.address,
            before=log.before,
            after=log.after,
            **details,
        )
