"""`toque webhooks` against a service that may deliver to no private address."""

from __future__ import annotations

import json

from tests.support.command import Service

URL = "https://example.com/hook"


def test_the_life_of_an_endpoint(service: Service) -> None:
    created = json.loads(service.run("webhooks", "create", URL, "--event", "batch.failed", "--json").stdout)
    assert created["signing_secret"].startswith("whsec_")
    assert created["event_types"] == ["batch.failed"]
    endpoint = created["id"]
    listed = json.loads(service.run("webhooks", "list", "--json").stdout)
    assert endpoint in [each["id"] for each in listed]
    changed = service.run("webhooks", "update", endpoint, "--name", "ci", "--disable", "--json")
    assert [json.loads(changed.stdout)[name] for name in ("name", "enabled")] == ["ci", False]
    shown = service.run("webhooks", "get", endpoint)
    assert "disabled" in shown.stdout
    assert created["signing_secret"] not in shown.stdout
    rotated = json.loads(service.run("webhooks", "rotate", endpoint, "--keep-old", "--json").stdout)
    assert rotated["signing_secret"] != created["signing_secret"]
    assert json.loads(service.run("webhooks", "deliveries", "--endpoint", endpoint, "--json").stdout) == []
    assert service.run("webhooks", "delete", endpoint).exit_code == 0
    gone = service.run("webhooks", "get", endpoint)
    assert (gone.exit_code, "webhook_endpoint_not_found" in gone.stderr) == (1, True)


def test_an_endpoint_is_told_of_everything_unless_events_are_chosen(service: Service) -> None:
    created = json.loads(service.run("webhooks", "create", URL, "--json").stdout)
    assert {"alias.moved", "fine_tuning.job.succeeded"} <= set(created["event_types"])
    service.run("webhooks", "delete", created["id"])


def test_what_cannot_be_done_is_said(service: Service) -> None:
    refused = service.run("webhooks", "create", "https://127.0.0.1/")
    assert (refused.exit_code, "not a public address" in refused.stderr) == (1, True)
    nothing = service.run("webhooks", "update", "whe_1")
    assert (nothing.exit_code, "Say what to change" in nothing.stderr) == (2, True)
    assert "webhook_delivery_not_found" in service.run("webhooks", "replay", "whd_1").stderr
