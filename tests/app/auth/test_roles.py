"""What each role may do: every route has a rule, and the service keeps to the table in `app.auth.roles`."""

from __future__ import annotations

import httpx2
import openai
import pytest
from fastapi.routing import APIRoute

from app.api.main import create_app
from app.auth import service as auth_service
from app.auth.roles import ROLES, Role, action_of
from app.core.database import Database
from app.core.errors import InvalidRequestError
from app.core.settings import Settings
from tests.support.engine_stand_in import ASK, EngineStandIn
from tests.support.service import BASE_MODEL, Service

ROUTES = sorted(
    (method, route.path)
    for route in create_app(Settings.model_construct()).routes
    if isinstance(route, APIRoute) and route.path.startswith("/v1/")
    for method in route.methods
)
MAY: dict[str, set[Role]] = {
    "GET /v1/files/{file_id}/content": {"admin", "project", "train", "read"},
    "GET /v1/models": {"admin", "project", "train", "inference", "read"},
    "GET /v1/responses/{response_id}": {"admin", "project", "train", "inference", "read"},
    "GET /v1/usage": {"admin", "project", "train", "read"},
    "POST /v1/chat/completions": {"admin", "project", "train", "inference"},
    "POST /v1/responses": {"admin", "project", "train", "inference"},
    "POST /v1/files": {"admin", "project", "train"},
    "POST /v1/uploads/{upload_id}/parts": {"admin", "project", "train"},
    "POST /v1/fine_tuning/jobs": {"admin", "project", "train"},
    "POST /v1/comparisons": {"admin", "project", "train"},
    "POST /v1/batches": {"admin", "project", "train"},
    "POST /v1/adapters": {"admin", "project", "train"},
    "PUT /v1/aliases/{name}": {"admin", "project"},
    "POST /v1/aliases/{name}/promote": {"admin", "project"},
    "DELETE /v1/models/{model}": {"admin", "project"},
    "POST /v1/webhook_endpoints": {"admin", "project"},
    "GET /v1/webhooks/deliveries": {"admin", "project", "train", "read"},
    "POST /v1/webhooks/deliveries/{delivery_id}/replay": {"admin", "project"},
}


def create_key(database: Database, role: Role, **options: object) -> str:
    with database.writer() as session:
        project = auth_service.create_project(session, "default")
        return auth_service.create_key(session, project.id, role, role=role, **options)[1]  # pyright: ignore


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_has_a_rule(method: str, path: str) -> None:
    action_of(method, path)


def test_a_route_without_a_rule_is_refused_when_the_app_is_built() -> None:
    with pytest.raises(LookupError, match=r"POST /v1/soups has no rule in app/auth/roles\.py"):
        action_of("POST", "/v1/soups")


@pytest.mark.one_database
def test_the_service_keeps_to_the_table(service: Service, database: Database) -> None:
    for role in ROLES:
        with service.http(create_key(database, role)) as http:
            for route, allowed in MAY.items():
                method, path = route.split(" ")
                answered = http.request(method, path.replace("{", "").replace("}", ""))
                if role in allowed:
                    assert answered.status_code not in (401, 403), (role, route)
                    continue
                error = answered.json()["error"]
                assert (answered.status_code, error["code"]) == (403, "insufficient_permissions"), (
                    role,
                    route,
                )
                assert f"the role '{role}'" in error["message"]
                assert all(f"'{each}'" in error["message"] for each in allowed)


@pytest.mark.one_database
def test_a_refusal_for_want_of_a_role_comes_before_the_body(service: Service, database: Database) -> None:
    with (
        service.client(create_key(database, "read")) as client,
        pytest.raises(openai.PermissionDeniedError) as refused,
    ):
        client.files.create(file=b"x" * 15_000_000, purpose="fine-tune")
    assert refused.value.code == "insufficient_permissions"
    assert refused.value.response.headers["connection"] == "close"


@pytest.mark.one_database
def test_a_key_with_a_list_of_models_asks_only_these(
    service: Service, database: Database, engine: EngineStandIn, http: httpx2.Client
) -> None:
    others = create_key(database, "inference", models=["soup:live"])
    with service.client(create_key(database, "inference", models=[BASE_MODEL, "soup:live"])) as client:
        assert client.chat.completions.create(**ASK).choices[0].message.content == "Leek."
        assert [model.id for model in client.models.list()] == [BASE_MODEL]
        with pytest.raises(openai.NotFoundError):  # it may ask by this name, and there is no such alias
            client.chat.completions.create(**ASK | {"model": "soup:live"})
    with service.client(others) as client:
        for model in (BASE_MODEL, "gpt-4o-mini", "nothing"):
            for ask in (
                lambda model=model: client.chat.completions.create(**ASK | {"model": model}),
                lambda model=model: client.completions.create(model=model, prompt="Soup"),
                lambda model=model: client.responses.create(model=model, input="Soup?"),
            ):
                with pytest.raises(openai.PermissionDeniedError) as refused:
                    ask()
                assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
            with pytest.raises(openai.NotFoundError) as missing:
                client.models.retrieve(model)
            assert missing.value.code == "model_not_found"
        assert client.models.list().data == []
    assert len(engine.bodies) == 1


@pytest.mark.one_database
@pytest.mark.parametrize("role", [role for role in ROLES if role != "inference"])
def test_only_a_key_for_inference_can_have_a_list_of_models(database: Database, role: Role) -> None:
    with pytest.raises(InvalidRequestError, match="'inference'"):
        create_key(database, role, models=[BASE_MODEL])
