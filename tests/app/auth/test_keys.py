"""What ends a key, how soon that is known, and what is kept of its use.

Every change is made straight in the database, as another process makes it.
"""

from __future__ import annotations

import time

import httpx2
import pytest
from sqlalchemy import update

from app.auth import service as auth_service
from app.auth.models import ApiKey, Project
from app.core.database import Database
from app.core.errors import ConflictError, InvalidRequestError
from app.core.settings import Settings
from app.organization import service as organization_service
from tests.support.cache_clock import CHANGES, CacheClock
from tests.support.engine_stand_in import ASK, EngineStandIn
from tests.support.service import OTHER_KEY, Service, run_service
from tests.support.waiting import wait_until


def create_key(database: Database, expires_at: float | None = None) -> tuple[str, str]:
    with database.writer() as session:
        project = auth_service.create_project(session, "default")
        key, secret = auth_service.create_key(session, project.id, "key", expires_at=expires_at)
    return key.id, secret


def statuses(http: httpx2.Client) -> set[int]:
    """Of an ordinary route, and of one that reads its body by itself."""
    return {http.get("/v1/models").status_code, http.post("/v1/chat/completions", json=ASK).status_code}


@pytest.mark.parametrize("name", ["", "n" * 129, "a\nb"])
def test_a_name_is_refused_before_the_database_does(database: Database, name: str) -> None:
    with database.writer() as session:
        project = auth_service.create_project(session, "default")
        for create in (
            lambda: auth_service.create_key(session, project.id, name),
            lambda: organization_service.create_project(session, name),
        ):
            with pytest.raises(InvalidRequestError, match="1 to 128 characters"):
                create()


def test_a_change_is_known_within_three_seconds(
    service: Service, database: Database, engine: EngineStandIn, cache_clock: CacheClock
) -> None:
    key_id, secret = create_key(database)
    with service.http(secret) as http, service.http(OTHER_KEY) as other:
        assert statuses(http) == statuses(other) == {200}
        with database.writer() as session:
            session.get_one(ApiKey, key_id).role = "read"
        cache_clock.pass_time(CHANGES)
        assert statuses(http) == {200, 403}, "the role is known"
        with database.writer() as session:
            auth_service.revoke_key(session, key_id)
            session.query(Project).filter_by(name="other").one().archived_at = time.time()
        cache_clock.pass_time(CHANGES)
        for ended in (http, other):
            assert statuses(ended) == {401}, "it is refused"
        assert "archived" in other.get("/v1/models").json()["error"]["message"]


@pytest.mark.one_database
def test_a_key_ends_at_the_second_even_if_it_is_in_use(service: Service, database: Database) -> None:
    expires_at = time.time() + 2
    _, secret = create_key(database, expires_at)
    with service.http(secret) as http:
        while (asked_at := time.time()) < expires_at - 0.2:
            assert http.get("/v1/models").status_code == 200 or time.time() >= expires_at, asked_at
        wait_until(lambda: time.time() >= expires_at, "the key expires")
        refused = http.get("/v1/models")
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "invalid_api_key"
    assert "expired" in refused.json()["error"]["message"]
    assert refused.headers["www-authenticate"] == 'Bearer realm="toque", error="invalid_token"'


def test_the_last_use_is_written_once_for_many_requests(settings: Settings, database: Database) -> None:
    key_id, secret = create_key(database)
    before = time.time()
    with run_service(settings) as service, service.http(secret) as http:
        for _ in range(5):
            http.get("/v1/models")
        with database.reader() as session:
            assert session.get_one(ApiKey, key_id).last_used_at is None  # no request writes
    with database.writer() as session:
        used_at = session.get_one(ApiKey, key_id).last_used_at
        assert used_at is not None
        assert before <= used_at <= time.time()
        auth_service.record_uses(session, {key_id: before - 10, "key_none": before})  # another process, late
    with database.reader() as session:
        assert session.get_one(ApiKey, key_id).last_used_at == used_at


def test_a_rotated_key_and_its_successor_are_both_valid_for_a_while(
    service: Service, database: Database
) -> None:
    key_id, secret = create_key(database)
    with database.writer() as session:
        old, new, successor = auth_service.rotate_key(session, key_id, 2.0)
        assert (new.name, new.role, new.service_account_id) == (old.name, old.role, old.service_account_id)
        assert new.expires_at is None
        ends_at = old.expires_at
    assert ends_at is not None
    with service.http(secret) as http, service.http(successor) as next_http:
        assert http.get("/v1/models").status_code == 200 or time.time() >= ends_at
        assert next_http.get("/v1/models").status_code == 200
        wait_until(lambda: http.get("/v1/models").status_code == 401, "the old key ends")
        assert next_http.get("/v1/models").status_code == 200
    with database.writer() as session, pytest.raises(ConflictError):
        auth_service.rotate_key(session, key_id, 2.0)


@pytest.mark.one_database
def test_however_often_an_endless_key_is_rotated_its_successors_are_endless(database: Database) -> None:
    key_id, _ = create_key(database)
    with database.writer() as session:
        for _ in range(2):
            _, new, _ = auth_service.rotate_key(session, key_id, 86_400)
            assert new.expires_at is None


@pytest.mark.one_database
def test_a_successor_lives_as_long_as_the_key_was_meant_to(database: Database) -> None:
    key_id, _ = create_key(database, time.time() + 1000)
    with database.writer() as session:
        old, new, _ = auth_service.rotate_key(session, key_id, 86_400)
        assert new.expires_at == pytest.approx(time.time() + 1000, abs=60)
        assert old.expires_at == pytest.approx(time.time() + 1000, abs=60)  # the overlap makes it no longer


@pytest.mark.one_database
def test_an_administrator_whose_key_has_expired_is_none(database: Database) -> None:
    with database.writer() as session:
        session.execute(update(ApiKey).where(ApiKey.role == "admin").values(expires_at=time.time() + 60))
        assert not auth_service.lacks_admin(session)
        session.execute(update(ApiKey).where(ApiKey.role == "admin").values(expires_at=time.time() - 1))
        assert auth_service.lacks_admin(session)


@pytest.mark.one_database
def test_the_first_key_is_the_deployments_administrator(database: Database) -> None:
    with database.reader() as session:
        roles = {key.name: key.role for key, _ in auth_service.list_keys(session)}
    assert roles == {"TOQUE_API_KEY": "admin", "other's key": "project"}


@pytest.mark.one_database
def test_what_strangers_send_is_not_looked_up_without_end(service: Service) -> None:
    with service.http(None) as http:
        for secret in ("x" * 513, "x" * 30_000):
            refused = http.get("/v1/models", headers={"authorization": f"Bearer {secret}"})
            assert refused.status_code == 401
