"""Creating once: a POST that is sent again does not create again.

An `Idempotency-Key` names a creation for 24 hours. Without one, a request that OpenAI's client marks as a
retry (`x-stainless-retry-count`) and that equals one accepted from the same key in the last ten minutes is
that one: the client sends no idempotency key of its own when a connection drops
(https://github.com/openai/openai-python, `_base_client.py`). The first try may be slow rather than lost, so
tries take turns, and one whose client has hung up, to try again, creates nothing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ForeignKey, Index, String, delete, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.core.database import Base, advisory_lock, new_id
from app.core.errors import UnavailableError, UnprocessableError

KEY_SECONDS = 24 * 3600.0
RETRY_SECONDS = 600.0


class Creation(Base):
    """An accepted request to create, and what it created."""

    __tablename__ = "creations"
    __table_args__ = (
        Index("ix_creations_key", "project_id", "idempotency_key", unique=True),
        Index("ix_creations_request", "project_id", "request_sha256", "created_at"),
        Index("ix_creations_created", "created_at"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("creation_"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    """None where the request had none."""
    request_sha256: Mapped[str] = mapped_column(String(64))
    resource_id: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(default=time.time)


@dataclass(frozen=True, slots=True)
class CreationRequest:
    """What tells one creating request from another."""

    project_id: str
    idempotency_key: str | None
    retry_count: int | None
    """How often OpenAI's client has asked before; None for other clients, which do not say."""
    is_abandoned: Callable[[], bool]
    """Whether the client has hung up."""

    def find(self, session: Session, kind: str, content: Any) -> str | None:
        """The id of what an equal request created before; None when this one is to create.

        Raises:
            UnprocessableError: the idempotency key was used for another request.
            UnavailableError: the client has hung up; its next try creates.
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
        advisory_lock(session, f"{self.project_id} {digest}")  # until no other may be creating the same
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

    def remember(self, session: Session, kind: str, content: Any, resource_id: str) -> None:
        """Records the creation, in its own transaction; two at once with one key cannot both commit."""
        session.add(
            Creation(
                project_id=self.project_id,
                idempotency_key=self.idempotency_key,
                request_sha256=_digest(kind, content),
                resource_id=resource_id,
            )
        )
        session.flush()


def forget_old(session: Session) -> None:
    """Removes what no request can ask for any more."""
    session.execute(delete(Creation).where(Creation.created_at < time.time() - KEY_SECONDS))


def _digest(kind: str, content: Any) -> str:
    return hashlib.sha256(json.dumps([kind, content], sort_keys=True).encode()).hexdigest()
