"""Records changes: what a session writes on somebody's behalf is also in the audit log, in one transaction.

A session does so by itself, so that no service has to remember it. It sees objects that are added, changed
and deleted, which is how requests and commands change what the log watches; statements that update rows
without objects, such as those of leases, are work of the service's own.
https://docs.sqlalchemy.org/en/21/orm/events.html#sqlalchemy.orm.SessionEvents.after_flush
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pwd import getpwuid
from socket import gethostname
from typing import Any, Literal, cast

import orjson
from sqlalchemy import event, insert, inspect
from sqlalchemy.orm import InstanceState, Session
from yarl import URL

from app.audit.models import AuditLog
from app.audit.resources import ADDRESSES, BOOKKEEPING, ENDS, RESOURCES, SECRETS
from app.core.database import Base

_LONGEST_VALUE = 4096


@dataclass(frozen=True, slots=True)
class Actor:
    """Who makes changes, and from where."""

    type: Literal["api_key", "session"]
    id: str
    address: str | None


ACTOR: ContextVar[Actor | None] = ContextVar("actor", default=None)
"""On whose behalf this request or command acts; None in the service's own work."""


def this_user() -> Actor:
    """Return the user of the operating system who runs this command."""
    try:
        user = getpwuid(os.getuid()).pw_name  # unlike $LOGNAME, it cannot be chosen
    except KeyError:  # as in a container, whose user may have no name
        user = f"uid {os.getuid()}"
    return Actor("session", user, gethostname())


@contextmanager
def acting_as(actor: Actor) -> Generator[None]:
    """Act on somebody's behalf while a `with` block runs."""
    acting = ACTOR.set(actor)
    try:
        yield
    finally:
        ACTOR.reset(acting)


Values = dict[str, Any]
_Compare = Callable[[InstanceState[Base]], tuple[Values, Values]]

_UNWRITTEN = "audit"
"""The key of `Session.info` under which the changes of its transaction are kept, by table and identity."""


@event.listens_for(Session, "after_flush")
def collect_changes(session: Session, _context: object) -> None:
    """Note what the session has just written, if it acts on somebody's behalf."""
    actor = ACTOR.get()
    if actor is None:
        return
    unwritten: dict[tuple[str, str], Values] = session.info.setdefault(_UNWRITTEN, {})
    kinds = (
        (session.new, "created", _added),
        (session.dirty, "updated", _changed),
        (session.deleted, "deleted", _gone),
    )
    for objects, kind, compare in kinds:
        for changed in cast("list[Base]", list(objects)):
            row = _row(actor, changed, kind, compare)
            if row is not None:
                place = (changed.__tablename__, row["resource_id"])
                unwritten[place] = _merged(unwritten[place], row) if place in unwritten else row


@event.listens_for(Session, "before_commit")
def write_changes(session: Session) -> None:
    """Write a row for each object that the transaction has changed."""
    if session.in_nested_transaction():
        return
    session.flush()
    if rows := list(session.info.pop(_UNWRITTEN, {}).values()):
        session.connection().execute(insert(AuditLog), rows)


@event.listens_for(Session, "after_rollback")
def forget_changes(session: Session) -> None:
    """Forget what did not happen."""
    session.info.pop(_UNWRITTEN, None)


def _merged(earlier: Values, later: Values) -> Values:
    """Return one row for two changes of an object in one transaction."""
    is_update = later["type"].endswith(".updated")
    return later | {
        "type": earlier["type"] if is_update else later["type"],
        "before": later["before"] | earlier["before"] if not earlier["type"].endswith(".created") else {},
        "after": earlier["after"] | later["after"] if later["after"] else {},
    }


def _row(actor: Actor, changed: Base, kind: str, compare: _Compare) -> Values | None:
    resource = RESOURCES.get(changed.__tablename__)
    if resource is None:
        return None
    state = inspect(changed)
    before, after = compare(state)
    if kind == "updated":
        if not after.keys() - BOOKKEEPING:
            return None
        ended = [ENDS[name] for name in ENDS if after.get(name) is not None]
        begins_again = any(
            before.get(name) is not None and after[name] is None for name in ENDS if name in after
        )
        kind = ended[0] if ended else "created" if begins_again else kind
    of_project = changed.__tablename__ == "projects"
    identity = state.mapper.primary_key_from_instance(changed)
    return {
        "type": f"{resource}.{kind}",
        "resource_id": str(getattr(changed, "id", identity[0])),
        "project_id": getattr(changed, "id" if of_project else "project_id", None),
        "actor_type": actor.type,
        "actor_id": actor.id,
        "address": actor.address,
        "before": before,
        "after": after,
    }


def _columns(state: InstanceState[Base]) -> list[str]:
    return [attribute.key for attribute in state.mapper.column_attrs]


def _added(state: InstanceState[Base]) -> tuple[Values, Values]:
    values = {name: state.dict.get(name) for name in _columns(state)}
    return {}, {name: _shown(name, value) for name, value in values.items() if value is not None}


def _gone(state: InstanceState[Base]) -> tuple[Values, Values]:
    return _added(state)[1], {}


def _changed(state: InstanceState[Base]) -> tuple[Values, Values]:
    before: Values = {}
    after: Values = {}
    for name in _columns(state):
        history = state.attrs[name].history
        if history.has_changes():
            before[name] = _shown(name, history.deleted[0] if history.deleted else None)
            after[name] = _shown(name, history.added[0] if history.added else None)
    return before, after


def _without_secrets(address: str) -> str:
    """Return the scheme and host of a URL: what follows may be a secret, as in chat services' webhooks."""
    url = URL(address)
    return f"{url.scheme}://{url.host}/…" if url.scheme and url.host else "[secret]"


def _shown(name: str, value: object) -> object:
    """Return a value as the log has it: no secret, and nothing very long."""
    if value is None:
        return None
    if name in SECRETS:
        return "[secret]"
    if name in ADDRESSES:
        return _without_secrets(str(value))
    written = orjson.dumps(value, default=str)
    return value if len(written) <= _LONGEST_VALUE else f"[{len(written):,} bytes]"
