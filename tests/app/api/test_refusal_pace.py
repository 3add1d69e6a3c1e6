"""Who is refused again and again waits for it, and nobody else does."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import NotFoundError, OpenAI

from app.core.database import Database
from app.core.settings import Settings
from tests.support.service import OTHER_KEY, Service, run_service

pytestmark = pytest.mark.one_database

AT_ONCE = 50


@pytest.fixture
def service(settings: Settings, database: Database) -> Iterator[Service]:
    with run_service(settings.model_copy(update={"refusals_per_second": 2.0})) as running:
        yield running


def test_only_refusals_wait_and_only_those_of_one_key(service: Service) -> None:
    with service.client() as client, service.client(OTHER_KEY) as other, ThreadPoolExecutor(6) as threads:
        for _ in range(AT_ONCE):
            _ask_for_no_file(client)
        late = [threads.submit(_ask_for_no_file, client) for _ in range(6)]  # the last one waits for 3 s
        assert client.models.list().data, "what it is allowed"
        _ask_for_no_file(other)
        assert not all(each.done() for each in late)
        for each in late:
            each.result()


def test_strangers_wait_by_their_address(service: Service) -> None:
    with (
        service.http(key=None) as stranger,
        service.client() as client,
        ThreadPoolExecutor(6) as threads,
    ):
        for _ in range(AT_ONCE):
            assert stranger.get("/v1/models").status_code == 401
        late = [threads.submit(stranger.get, "/v1/models") for _ in range(6)]
        _ask_for_no_file(client)  # it has a key, whatever others at its address do
        assert not all(each.done() for each in late)
        answers = [each.result() for each in late]
    assert {answer.json()["error"]["code"] for answer in answers} == {"invalid_api_key"}


def _ask_for_no_file(client: OpenAI) -> None:
    with pytest.raises(NotFoundError, match="file-none"):
        client.files.retrieve("file-none")
