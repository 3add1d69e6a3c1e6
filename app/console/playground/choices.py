"""What can be asked: aliases, base models, fine-tuned models and checkpoints, by parts of their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.console.words import have_words, words_of
from app.context import Context
from app.core.pagination import fetch_page
from app.models.adapters.models import Adapter
from app.models.aliases.models import Alias
from app.models.catalogue import Catalogue

_PAGE = 25


@dataclass(frozen=True, slots=True)
class Choices:
    """A page of what has been found; aliases and base models are on the first page only."""

    aliases: Sequence[Alias]
    bases: Sequence[str]
    tuned: Sequence[Adapter]
    after: str | None
    """The model after which the next page begins; None if this is the last one."""

    @property
    def is_any(self) -> bool:
        """Whether anything has been found."""
        return bool(self.aliases or self.bases or self.tuned)


def find_choices(session: Session, context: Context, text: str, after: str | None) -> Choices:
    """Return a page of the models and aliases that the caller may ask, whose names have all words of a text.

    Raises:
        InvalidRequestError: `after` is no model of the project.
    """
    words = words_of(text)
    tuned, has_more = _find_tuned(session, context, words, after, _PAGE)
    is_first = after is None
    return Choices(
        _find_aliases(session, context, words) if is_first else (),
        _find_bases(session, context, words) if is_first else (),
        tuned,
        tuned[-1].name if has_more else None,
    )


def suggest(session: Session, context: Context) -> list[str]:
    """Return whom to ask at first: the newest fine-tuned model beside its base, or else a base model."""
    newest, _ = _find_tuned(session, context, (), None, 1)
    bases = _find_bases(session, context, ())
    beside = [name for name in bases if newest and name == newest[0].base_model] or bases[:1]
    return [*beside, *(adapter.name for adapter in newest)]


def _find_tuned(
    session: Session, context: Context, words: Sequence[str], after: str | None, limit: int
) -> tuple[Sequence[Adapter], bool]:
    query = select(Adapter).where(
        Adapter.project_id == context.project_id,
        Adapter.deleted_at.is_(None),
        Adapter.quarantine_reason.is_(None),
    )
    return fetch_page(
        session,
        _named(query, Adapter.name, context, words),
        (Adapter.created_at, Adapter.name),
        identity=Adapter.name,
        after=after,
        limit=limit,
    )


def _find_aliases(session: Session, context: Context, words: Sequence[str]) -> Sequence[Alias]:
    query = select(Alias).where(Alias.project_id == context.project_id, Alias.deleted_at.is_(None))
    return session.scalars(_named(query, Alias.name, context, words).order_by(Alias.name).limit(_PAGE)).all()


def _find_bases(session: Session, context: Context, words: Sequence[str]) -> list[str]:
    names = [entry.name for entry in Catalogue.read(session, context.settings).entries]
    return [name for name in names if context.may_ask(name) and all(word in name.lower() for word in words)]


def _named(
    query: Select[Any], name: InstrumentedAttribute[str], context: Context, words: Sequence[str]
) -> Select[Any]:
    """Narrow a query to names that have all words, and that the caller's key is not kept from."""
    query = query.where(*have_words(words, name))
    caller = context.caller
    return query if caller is None or caller.models is None else query.where(name.in_(caller.models))
