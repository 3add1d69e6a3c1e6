"""Sessions over plain HTTP: how they begin and end, and what they do not allow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from itsdangerous import TimestampSigner

from app.api import refusal_pace
from app.auth import service as auth_service
from app.auth.models import ApiKey
from app.core.database import Database
from app.core.settings import Settings
from tests.console.conftest import Console
from tests.support.service import API_KEY, OTHER_KEY, run_service
from tests.support.waiting import wait_until

FOREIGN = "https://evil.example"


@contextmanager
def signed_in(console: Console, key: str = API_KEY) -> Iterator[httpx2.Client]:
    with console.service.http(None) as http:
        response = http.post("/console/sign-in", data={"api_key": key})
        assert response.status_code == 303, response.text
        yield http


def csrf_token(http: httpx2.Client) -> str:
    page = http.get("/console").text
    return page.partition('name="csrf-token" content="')[2].partition('"')[0]


def key_id(database: Database, secret: str) -> str:
    with database.reader() as session:
        return auth_service.find_caller(session, auth_service.digest(secret)).key_id


def is_signed_in(http: httpx2.Client) -> bool:
    response = http.get("/console")
    assert response.status_code == 200 or response.headers["location"].startswith("/console/sign-in")
    return response.status_code == 200


def test_the_cookie_is_kept_from_scripts_and_other_sites(console: Console) -> None:
    with console.service.http(None) as http:
        plain = http.post("/console/sign-in", data={"api_key": API_KEY})
        secure = http.post(
            "/console/sign-in", data={"api_key": API_KEY}, headers={"x-forwarded-proto": "https"}
        )
    kept = plain.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/", "Max-Age=43200"} <= set(kept.split("; "))
    assert "Secure" not in kept.split("; ")
    assert "Secure" in secure.headers["set-cookie"].split("; ")
    assert API_KEY not in kept


@pytest.mark.parametrize(
    ("key", "problem"),
    [("", "Paste an API key."), ("sk-toque-nobody", "not valid"), ("x" * 9000, "not valid")],
)
def test_no_key_no_session(console: Console, key: str, problem: str) -> None:
    with console.service.http(None) as http:
        response = http.post("/console/sign-in", data={"api_key": key})
        assert response.status_code == 401
        assert problem in response.text
        assert "set-cookie" not in response.headers


def test_attempts_to_sign_in_are_slowed_down(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusal_pace, "_AT_ONCE", 0)
    paced = settings.model_copy(update={"refusals_per_second": 1.0})
    with run_service(paced) as running, running.http(None) as http:
        response = http.post("/console/sign-in", data={"api_key": "sk-guess"})
    assert response.status_code == 401
    assert response.elapsed.total_seconds() > 0.9


def test_a_session_ends_with_its_key(console: Console) -> None:
    with signed_in(console, OTHER_KEY) as http:
        assert is_signed_in(http)
        with console.database.writer() as session:
            auth_service.revoke_key(session, key_id(console.database, OTHER_KEY))
        wait_until(lambda: not is_signed_in(http), "the session ends")
        assert http.get("/v1/files").status_code == 401


def test_a_session_ends_when_its_key_expires(console: Console) -> None:
    with signed_in(console, OTHER_KEY) as http:
        with console.database.writer() as session:
            session.get_one(ApiKey, key_id(console.database, OTHER_KEY)).expires_at = 1.0
        wait_until(lambda: not is_signed_in(http), "the session ends")


def test_a_session_ends_after_twelve_hours(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    signed_at = TimestampSigner.get_timestamp

    def hours_ago(hours: float) -> Any:
        return lambda signer: signed_at(signer) - int(hours * 3600)

    with monkeypatch.context() as clock:
        clock.setattr(TimestampSigner, "get_timestamp", hours_ago(12.1))
        old = sign_in_cookie(console)
        clock.setattr(TimestampSigner, "get_timestamp", hours_ago(11.9))
        recent = sign_in_cookie(console)
    with console.service.http(None) as http:
        assert http.get("/console", headers={"cookie": f"toque_session={old}"}).status_code == 303
        assert http.get("/console", headers={"cookie": f"toque_session={recent}"}).status_code == 200


def sign_in_cookie(console: Console, key: str = API_KEY) -> str:
    with signed_in(console, key) as http:
        return http.cookies["toque_session"]


def test_a_cookie_that_was_changed_is_none(console: Console) -> None:
    cookie = sign_in_cookie(console)
    other = key_id(console.database, OTHER_KEY)
    mine, at, signature = cookie.split(".")
    forged = [
        f"{other}.{at}.{signature}",
        f"{mine}.{at}.{signature[::-1]}",
        f"{mine}.zzzzzz.{signature}",
        f"{mine}.{at}",
        mine,
        "",
        "." * 300,
        "x" * 5000,
        "key_nobody.aaaaaa.bbbb",
    ]
    with console.service.http(None) as http:
        for each in forged:
            response = http.get("/console", headers={"cookie": f"toque_session={each}"})
            assert response.status_code == 303, each
            assert http.get("/v1/files", headers={"cookie": f"toque_session={each}"}).status_code == 401


@pytest.mark.parametrize(
    "after",
    [
        "https://evil.example",
        "//evil.example/console",
        "/\\evil.example",
        "/console\\..\\evil",
        "javascript:alert(1)",
        "/v1/files",
        "/console/sign-in",
        "/console/\r\nset-cookie: a=b",
        "",
    ],
)
def test_signing_in_leads_to_pages_of_the_console_only(console: Console, after: str) -> None:
    with console.service.http(None) as http:
        response = http.post("/console/sign-in", data={"api_key": API_KEY, "next": after})
        assert (response.status_code, response.headers["location"]) == (303, "/console")


def test_signing_in_leads_to_where_one_wanted_to_go(console: Console) -> None:
    with console.service.http(None) as http:
        asked = http.get("/console/nowhere?after=1&b=%2F")
        assert asked.status_code == 404
        asked = http.get("/console?after=1&b=%2F")
        assert asked.headers["location"] == "/console/sign-in?next=%2Fconsole%3Fafter%3D1%26b%3D%252F"
        response = http.post("/console/sign-in", data={"api_key": API_KEY, "next": "/console?after=1"})
        assert response.headers["location"] == "/console?after=1"


def test_changes_need_the_token_of_the_session(console: Console) -> None:
    with signed_in(console) as http, signed_in(console, OTHER_KEY) as other:
        token, stolen = csrf_token(http), csrf_token(other)
        for refused in (
            http.post("/console/sign-out"),
            http.post("/console/sign-out", data={"csrf_token": stolen}),
            http.post("/console/sign-out", headers={"x-csrf-token": stolen}),
            http.post("/console/sign-out", data={"csrf_token": "ünsinn"}),
            http.post("/console/sign-out", headers={"x-csrf-token": token, "origin": FOREIGN}),
            http.post("/console/sign-out", headers={"x-csrf-token": token, "sec-fetch-site": "same-site"}),
        ):
            assert refused.status_code == 403, refused.text
            assert refused.headers["content-type"] == "text/html; charset=utf-8"
        assert is_signed_in(http)
        assert http.post("/console/sign-out", data={"csrf_token": token}).status_code == 303
        assert not is_signed_in(http)


@pytest.mark.parametrize("origin", [FOREIGN, "null", "", "http://[", "http://[::1/"])
def test_no_other_site_can_sign_a_visitor_in(console: Console, origin: str) -> None:
    with console.service.http(None) as http:
        response = http.post("/console/sign-in", data={"api_key": API_KEY}, headers={"origin": origin})
        assert response.status_code == 403
        assert "set-cookie" not in response.headers


def test_scripts_of_the_console_call_the_api_with_the_session(console: Console) -> None:
    with signed_in(console) as http:
        token = csrf_token(http)
        assert http.get("/v1/fine_tuning/jobs").json()["data"] == []
        file = {"file": ("a.jsonl", b"{}\n")}
        purpose = {"purpose": "fine-tune"}
        refused = http.post("/v1/files", files=file, data=purpose)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "invalid_csrf_token")
        foreign = {"x-csrf-token": token, "origin": FOREIGN}
        refused = http.post("/v1/files", files=file, data=purpose, headers=foreign)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "other_origin")
        allowed = http.post("/v1/files", files=file, data=purpose, headers={"x-csrf-token": token})
        assert allowed.status_code == 200
        log = http.get("/v1/organization/audit_logs").json()["data"]
        mine = [each for each in log if allowed.json()["id"] in str(each)]
        assert mine == [] or mine[0]["actor"]["api_key"]["id"] == key_id(console.database, API_KEY)


def test_a_key_in_the_header_counts_more_than_a_session(console: Console) -> None:
    with signed_in(console) as http:
        response = http.get("/v1/files", headers={"authorization": "Bearer sk-toque-nobody"})
        assert response.status_code == 401


def test_two_projects_see_nothing_of_each_other(console: Console) -> None:
    with signed_in(console) as mine, signed_in(console, OTHER_KEY) as other:
        sent = mine.post(
            "/v1/files",
            files={"file": ("secret-recipe.jsonl", b"{}\n")},
            data={"purpose": "fine-tune"},
            headers={"x-csrf-token": csrf_token(mine)},
        ).json()
        assert other.get(f"/v1/files/{sent['id']}").status_code == 404
        assert "secret-recipe" not in other.get("/console").text
        assert "other" in other.get("/console").text


def test_errors_are_pages_inside_the_console(console: Console) -> None:
    with signed_in(console) as http:
        page = http.get("/console/nowhere")
        assert page.status_code == 404
        assert "The console has no such page" in page.text
        assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        wrong = http.delete("/console", headers={"x-csrf-token": csrf_token(http)})
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD")
        assert "<h1>Method Not Allowed</h1>" in wrong.text
        head = http.head("/console")
        assert (head.status_code, head.text) == (200, "")
        fragment = http.get("/console/nowhere", headers={"hx-request": "true"})
        assert fragment.headers["hx-retarget"] == "#alerts"
        assert fragment.text.startswith('<div class="alert')
    with console.service.http(None) as http:
        away = http.get("/console", headers={"hx-request": "true", "hx-current-url": f"{console.url}?a=1"})
        assert (away.status_code, away.headers["hx-redirect"]) == (
            204,
            "/console/sign-in?next=%2Fconsole%3Fa%3D1",
        )


def test_the_api_describes_nothing_of_the_console(console: Console) -> None:
    with console.service.http(None) as http:
        paths = http.get("/openapi.json", timeout=120).json()["paths"]
    assert [path for path in paths if path.startswith("/console")] == []


def test_files_of_the_console_are_kept_by_browsers_and_compressed(console: Console) -> None:
    with console.service.http(None) as http:
        page = http.get("/console/sign-in").text
        style = page.partition('rel="stylesheet" href="')[2].partition('"')[0]
        found = {
            encoding: http.get(style, headers={"accept-encoding": encoding})
            for encoding in ("gzip", "identity")
        }
        assert {each.text for each in found.values()} == {found["identity"].text}
        assert found["gzip"].headers["content-encoding"] == "gzip"
        assert found["gzip"].headers["cache-control"] == "public, max-age=31536000, immutable"
        assert http.get("/console/static/0000/console.css").status_code == 404
        assert http.get("/console/static/0000/../../session.py").status_code == 404
