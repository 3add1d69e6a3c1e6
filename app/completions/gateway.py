"""The gateway: who asks, for which model, and the answer to it."""

from __future__ import annotations

from functools import partial

from starlette.types import Scope

from app.adapters import service as adapters_service
from app.adapters.service import ServedModel
from app.auth import service as auth_service
from app.completions.answer import Answer
from app.completions.remembered import Remembered
from app.completions.replicas import Replicas
from app.completions.schemas import SamplingParameters
from app.database import Database
from app.middleware import ARRIVED
from app.settings import Settings
from app.usage.tally import Tally


class Gateway:
    """What all completions of this process share."""

    def __init__(self, settings: Settings, database: Database, replicas: Replicas, tally: Tally) -> None:
        self._settings = settings
        self._database = database
        self._replicas = replicas
        self._tally = tally
        self._projects: Remembered[str, str] = Remembered(self._find_project)
        self._models: Remembered[tuple[str, str], ServedModel] = Remembered(self._find_model)

    async def authenticate(self, secret: str | None) -> str:
        """The id of the project that the key belongs to.

        Raises:
            AuthenticationError: no key, an unknown one, or one that was revoked (three seconds ago or more).
        """
        return await self._projects.get(secret or "")

    async def answer(self, scope: Scope, project_id: str, path: str, body: SamplingParameters) -> Answer:
        """The response that will ask an engine when it is sent.

        Raises:
            NotFoundError: the project has no such model.
        """
        key = (project_id, body.model)
        served = await self._models.get(key)
        look_up_now = partial(self._models.look_up_now, key)
        return Answer(
            self._replicas, self._tally, served, look_up_now, project_id, path, body, scope[ARRIVED]
        )

    def _find_project(self, secret: str) -> str:
        with self._database.reader() as session:
            return auth_service.authenticate(session, secret).id

    def _find_model(self, key: tuple[str, str]) -> ServedModel:
        project_id, name = key
        with self._database.reader() as session:
            return adapters_service.resolve_model(session, self._settings, project_id, name)
