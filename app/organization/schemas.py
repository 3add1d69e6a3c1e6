"""Projects, service accounts and API keys on the wire, in the shapes of OpenAI's administration API.

https://platform.openai.com/docs/api-reference/administration
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.auth.models import ApiKey, Project, ServiceAccount
from app.auth.roles import Role
from app.core.optional_field import OmittedIfNone
from app.core.pagination import Identified

Name = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\u0000-\u001f]*$")]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\u0000-\u001f]*$")]
Lifetime = Annotated[int, Field(ge=1, le=100 * 365 * 86_400, strict=True, description="Seconds from now")]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CreateProject(_Request):
    """A request for a new project."""

    name: Name


class UpdateProject(_Request):
    """A request to call a project something else; the names of its models stay."""

    name: Name | None = None


class _KeyOptions(_Request):
    role: Role = "project"
    models: list[ModelName] | None = None
    """The only models and aliases that the key may ask; for the role `inference` only."""
    expires_in_seconds: Lifetime | None = None


class CreateServiceAccount(_KeyOptions):
    """A request for a service account with a key."""

    name: Name


class CreateKey(_KeyOptions):
    """A request for one more key of a service account."""

    name: Name | None = None
    """The service account's name, unless it is given."""


class UpdateKey(_Request):
    """A request to let a key expire at another time."""

    expires_in_seconds: Lifetime


class ProjectObject(Identified):
    """A project."""

    object: Literal["organization.project"] = "organization.project"
    name: str
    created_at: int
    archived_at: int | None
    status: Literal["active", "archived"]
    slug: str
    """What the names of its models contain."""

    @classmethod
    def of(cls, project: Project) -> ProjectObject:
        """Return the project as the API shows it."""
        return cls(
            id=project.id,
            name=project.title,
            created_at=int(project.created_at),
            archived_at=None if project.archived_at is None else int(project.archived_at),
            status="active" if project.archived_at is None else "archived",
            slug=project.name,
        )


class ServiceAccountObject(Identified):
    """A service account."""

    object: Literal["organization.project.service_account"] = "organization.project.service_account"
    name: str
    role: Literal["member"] = "member"
    """OpenAI's word for its place in the project; what it may do is the role of its keys."""
    created_at: int

    @classmethod
    def of(cls, account: ServiceAccount) -> ServiceAccountObject:
        """Return the service account as the API shows it."""
        return cls(id=account.id, name=account.name, created_at=int(account.created_at))


class NewKeyObject(Identified):
    """A key with its value, which is shown this once."""

    object: Literal["organization.project.service_account.api_key"] = (
        "organization.project.service_account.api_key"
    )
    name: str
    value: str
    created_at: int
    expires_at: OmittedIfNone[int] = None
    role: Role
    models: OmittedIfNone[list[str]] = None

    @classmethod
    def of(cls, key: ApiKey, secret: str) -> NewKeyObject:
        """Return the key as the API shows it when it is new."""
        return cls(
            id=key.id,
            name=key.name,
            value=secret,
            created_at=int(key.created_at),
            expires_at=None if key.expires_at is None else int(key.expires_at),
            role=key.role,
            models=key.models,
        )


class NewServiceAccountObject(ServiceAccountObject):
    """A service account with its first key."""

    api_key: NewKeyObject

    @classmethod
    def with_key(cls, account: ServiceAccount, key: ApiKey, secret: str) -> NewServiceAccountObject:
        """Return the service account as the API shows it when it is new."""
        shown = ServiceAccountObject.of(account)
        return cls(**shown.model_dump(), api_key=NewKeyObject.of(key, secret))


class OwnerAccount(BaseModel):
    """The service account that a key belongs to."""

    id: str
    name: str
    created_at: int
    role: Literal["member"] = "member"


class Owner(BaseModel):
    """Whom a key belongs to."""

    type: Literal["service_account"] = "service_account"
    service_account: OwnerAccount


class KeyObject(Identified):
    """A key, whose value cannot be shown again."""

    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    name: str
    redacted_value: str
    created_at: int
    last_used_at: int | None
    expires_at: OmittedIfNone[int] = None
    owner: Owner
    owner_project_access: Literal["active", "inactive"]
    role: Role
    models: OmittedIfNone[list[str]] = None

    @classmethod
    def of(cls, key: ApiKey) -> KeyObject:
        """Return the key as the API shows it."""
        account = key.service_account
        owner = OwnerAccount(id=account.id, name=account.name, created_at=int(account.created_at))
        return cls(
            id=key.id,
            name=key.name,
            redacted_value=f"sk-...{key.hint}",
            created_at=int(key.created_at),
            last_used_at=None if key.last_used_at is None else int(key.last_used_at),
            expires_at=None if key.expires_at is None else int(key.expires_at),
            owner=Owner(service_account=owner),
            owner_project_access="active" if key.project.archived_at is None else "inactive",
            role=key.role,
            models=key.models,
        )


class KeyDeleted(BaseModel):
    """A key was deleted."""

    id: str
    object: Literal["organization.project.api_key.deleted"] = "organization.project.api_key.deleted"
    deleted: Literal[True] = True


class ServiceAccountDeleted(BaseModel):
    """A service account was deleted with its keys."""

    id: str
    object: Literal["organization.project.service_account.deleted"] = (
        "organization.project.service_account.deleted"
    )
    deleted: Literal[True] = True
