"""Idempotent creation: a POST that is sent again does not create again.

An `Idempotency-Key` names a creation for 24 hours. OpenAI's client sends no such key of its own when a
connection drops (https://github.com/openai/openai-python, `_base_client.py`), but it marks its retries
(`x-stainless-retry-count`). A request that is marked, and equals one that was accepted from the same project
in the last ten minutes, is treated as the same request. The first attempt may be slow rather than lost, so
the transactions of equal requests run one after another, and an attempt whose client has hung up in order to
retry creates nothing. One limit remains: behind a proxy that keeps the first connection open, an attempt that
is overtaken by its own retry cannot tell, and creates a second time. An `Idempotency-Key` prevents that.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sqlalchemy import ForeignKey, Index, String, delete, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.core.database import Base, advisory_lock, new_id
from app.core.errors import NotFoundError, UnavailableError, UnprocessableError

KEY_SECONDS = 24 * 3600.0
RETRY_SECONDS = 600.0


class Creation(Base):
    """An accepted request to create something, and the id of what it created."""

    __tablename__ = "creations"
    __table_args__ = (
        Index("ix_creations_key", "project_id", "idempotency_key", unique=True),
        Index("ix_creations_request", "project_id", "request_sha256", "created_at"),
        Index("ix_creations_created", "created_at"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("creation_"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    """The request's `Idempotency-Key`; None where it had none."""
    request_sha256: Mapped[str] = mapped_column(String(64))
    resource_id: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(default=time.time)


class Resource(Protocol):
    """Anything that a request creates."""

    @property
    def id(self) -> Any:  # a `str`, which pyright does not find behind `Mapped[str]`
        """The id by which an equal request finds it again, at most 64 characters long."""
        ...


ResourceT = TypeVar("ResourceT", bound=Resource)


@dataclass(frozen=True, slots=True)
class IdempotentRequest:
    """What tells one creating request from another."""

    project_id: str
    idempotency_key: str | None
    retry_count: int | None
    """How often OpenAI's client has sent this request before; None for clients that do not say."""
    is_abandoned: Callable[[], bool]
    """Returns whether the client has hung up."""

    def once(
        self,
        session: Session,
        kind: str,
        content: Any,
        *,
        find: Callable[[str], ResourceT],
        create: Callable[[], ResourceT],
    ) -> ResourceT:
        """Return what an equal request created before, or else create it and remember that in `session`.

        `find` gets the id of what was created. It raises NotFoundError if that has been deleted since: an
        idempotency key still stands for it then, whereas a marked retry creates it anew.

        Raises:
            NotFoundError: the idempotency key stands for something that was deleted.
            UnprocessableError: the idempotency key was used for another request.
            UnavailableError: the client has hung up; its next attempt creates.
        """
        known = self.find(session, kind, content)
        if known is not None:
            try:
                return find(known)
            except NotFoundError:
                if self.idempotency_key is not None:
                    raise
        resource = create()
        session.add(
            Creation(
                project_id=self.project_id,
                idempotency_key=self.idempotency_key,
                request_sha256=_digest(kind, content),
                resource_id=resource.id,
            )
        )
        session.flush()  # two requests at once with one key cannot both get past this
        return resource

    def find(self, session: Session, kind: str, content: Any) -> str | None:
        """Return the id of what an equal request created before, or None if this request is to create it.

        `once` asks this itself. Call it alone only to find out before long work whether the work is needed.

        Raises:
            UnprocessableError: the idempotency key was used for another request.
            UnavailableError: the client has hung up; its next attempt creates.
        """
        digest = _digest(kind, content)
        query = select(Creation).where(Creation.project_id == self.project_id)
        if self.idempotency_key is not None:
            known = session.scalar(query.where(Creation.idempotency_key == self.idempotency_key))
            if known is None:
                return None
            if known.created_at < time.time() - KEY_SECONDS:
                session.delete(known)
                session.flush()
                return None
            if known.request_sha256 != digest:
                raise UnprocessableError(
                    "This Idempotency-Key was used for another request; use a new one.",
                    code="idempotency_key_reused",
                    param="Idempotency-Key",
                )
            return known.resource_id
        if self.retry_count is None:
            return None
        advisory_lock(session, f"{self.project_id} {digest}")  # no equal request is creating meanwhile
        if self.retry_count > 0:
            recent = query.where(
                Creation.request_sha256 == digest, Creation.created_at > time.time() - RETRY_SECONDS
            )
            known = session.scalar(recent.order_by(Creation.created_at.desc()).limit(1))
            if known is not None:
                return known.resource_id
        if self.is_abandoned():
            raise UnavailableError("The client has hung up; nothing was created.", code="client_gone")
        return None


def delete_expired(session: Session) -> None:
    """Remove the creations that no request can repeat any more."""
    session.execute(delete(Creation).where(Creation.created_at < time.time() - KEY_SECONDS))


def _digest(kind: str, content: Any) -> str:
    return hashlib.sha256(json.dumps([kind, content], sort_keys=True).encode()).hexdigest()
