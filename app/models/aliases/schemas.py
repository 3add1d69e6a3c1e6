"""Aliases on the wire."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.auth.models import ApiKey
from app.core.pagination import Identified
from app.models.aliases.models import Alias, AliasChange, ChangeKind, Share

AliasName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9:._-]*$", max_length=128)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=255)]
Version = Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]
Reason = Annotated[str, StringConstraints(max_length=512, pattern=r"^[^\u0000]*$")]
ComparisonId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class ShareObject(BaseModel):
    """A model of a split; its part of the traffic is its weight among all weights."""

    model_config = ConfigDict(extra="forbid")

    model: ModelName
    weight: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False, strict=True)]


class PutAlias(BaseModel):
    """Where an alias should point: `model` or `split`, one of the two."""

    model_config = ConfigDict(extra="forbid")

    model: ModelName | None = None
    split: Annotated[list[ShareObject], Field(min_length=1, max_length=16)] | None = None
    version: Version | None = None
    """The version to replace; absent if the alias is to be created."""
    reason: Reason | None = None
    comparison: ComparisonId | None = None


class RollBackAlias(BaseModel):
    """A request to return to where the alias pointed before."""

    model_config = ConfigDict(extra="forbid")

    version: Version | None = None
    """The version that the alias must be at; absent if any will do."""
    reason: Reason | None = None


class AliasObject(Identified):
    """An alias as it is now."""

    id: str
    """The alias's name, by which lists are paged."""
    object: Literal["alias"] = "alias"
    name: str
    model: str | None
    """The model it points to; null if several share its traffic."""
    split: list[ShareObject]
    """All models it points to, even if there is only one."""
    version: int
    """The version to send with the next change."""
    created_at: int
    updated_at: int

    @classmethod
    def of(cls, alias: Alias) -> AliasObject:
        """Return the alias as the API shows it."""
        return cls(
            id=alias.name,
            name=alias.name,
            model=alias.split[0]["model"] if len(alias.split) == 1 else None,
            split=_shares(alias.split),
            version=alias.version,
            created_at=int(alias.created_at),
            updated_at=int(alias.updated_at),
        )


class ChangedBy(BaseModel):
    """The API key that a change was requested with."""

    id: str
    name: str


class AliasChangeObject(Identified):
    """One change of an alias: who made it, when, why, and from where to where."""

    object: Literal["alias.change"] = "alias.change"
    version: int
    kind: ChangeKind
    created_at: int
    by: ChangedBy
    reason: str | None
    comparison: str | None
    rules: list[dict[str, Any]] | None
    """The rules of a promotion, each with its figure."""
    from_: Annotated[list[ShareObject] | None, Field(serialization_alias="from")]
    """The models before the change; null if the alias did not exist."""
    to: list[ShareObject] | None
    """The models after the change; null if the alias was deleted."""
    restored_version: int | None
    """The version of the change that a rollback returned to."""

    @classmethod
    def of(cls, change: AliasChange, key: ApiKey) -> AliasChangeObject:
        """Return the change as the API shows it."""
        return cls(
            id=change.id,
            version=change.version,
            kind=change.kind,
            created_at=int(change.created_at),
            by=ChangedBy(id=key.id, name=key.name),
            reason=change.reason,
            comparison=change.comparison_id,
            rules=change.rules,
            from_=_shares(change.split_before) or None,
            to=_shares(change.split_after) or None,
            restored_version=change.restored_version,
        )


class AliasDeleted(BaseModel):
    """The confirmation that an alias was deleted."""

    id: str
    object: Literal["alias"] = "alias"
    deleted: Literal[True] = True


def _shares(split: list[Share]) -> list[ShareObject]:
    return [ShareObject(**share) for share in split]
