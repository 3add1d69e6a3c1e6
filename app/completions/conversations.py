"""What responses continue, and what is kept of them to be continued."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import orjson
from anyio import to_thread
from sqlalchemy.exc import SQLAlchemyError

from app.completions.schemas import GatewayRequest, ResponseRequest
from app.core.database import Database
from app.core.settings import Settings
from app.responses import service

log = logging.getLogger("toque.conversations")

Items = list[dict[str, Any]]


class Conversations:
    """The stored responses, as requests need them: read before an engine is asked, written after."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database

    async def resolve(self, project_id: str, body: GatewayRequest) -> None:
        """Gives a request for a response the items that it continues and refers to; does nothing to others.

        Raises:
            InvalidRequestError: a response or an item cannot be found; or the conversation is too long to be
                stored, or lacks a function's call or its output.
        """
        if not isinstance(body, ResponseRequest):
            return
        history: Items = []
        referred: dict[str, dict[str, Any]] = {}
        if body.previous_response_id or body.references:
            history, referred = await to_thread.run_sync(self._read, project_id, body)
        is_stored = body.store is not False and self._settings.response_days > 0
        body.resolve(history, referred, partial(self._keep, project_id, body) if is_stored else None)
        if is_stored:
            service.check_length(1, len(orjson.dumps([*history, *body.own_items])), "input")

    def _read(self, project_id: str, body: ResponseRequest) -> tuple[Items, dict[str, dict[str, Any]]]:
        history: Items = []
        with self._database.reader() as session:
            if body.previous_response_id:
                history = service.read_conversation(session, project_id, body.previous_response_id)
            return history, service.find_items(session, project_id, body.references)

    async def _keep(self, project_id: str, body: ResponseRequest, response: dict[str, Any]) -> bool:
        """Stores a response; returns whether the database could be written."""
        try:
            await to_thread.run_sync(self._write, project_id, body.own_items, response)
        except SQLAlchemyError as error:
            log.warning("the response %s was not stored: %s", response["id"], error)
            return False
        return True

    def _write(self, project_id: str, items: Items, response: dict[str, Any]) -> None:
        with self._database.writer() as session:
            service.keep(session, project_id, items, response, self._settings.response_days)
