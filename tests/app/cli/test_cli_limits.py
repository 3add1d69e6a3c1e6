"""`toque projects limits` and `toque keys limits`."""

from __future__ import annotations

import json

from tests.support.command import Service


def test_limits_are_set_shown_and_lifted(service: Service) -> None:
    project = json.loads(service.run("projects", "create", "Limited", "--json").stdout)
    key = json.loads(service.run("keys", "create", "web", "--project", project["slug"], "--json").stdout)
    set_some = service.run(
        "projects", "limits", project["id"], "--requests", 600, "--tokens", 200_000, "--json"
    )
    of_all, *of_bases = json.loads(set_some.stdout)
    assert (of_all["max_requests_per_1_minute"], of_all["max_tokens_per_1_minute"]) == (600, 200_000)
    assert {each["max_requests_per_1_minute"] for each in of_bases} == {None}
    of_key = service.run("keys", "limits", key["id"], "--model", of_bases[0]["model"], "--concurrent", 4)
    assert of_bases[0]["model"] in of_key.stdout
    assert "unlimited" in of_key.stdout
    lifted = service.run("projects", "limits", project["id"], "--requests", "none", "--json")
    assert json.loads(lifted.stdout)[0]["max_requests_per_1_minute"] is None
    assert json.loads(lifted.stdout)[0]["max_tokens_per_1_minute"] == 200_000
    for unusable in ("many", "1_000", " 5", "0"):
        assert service.run("projects", "limits", project["id"], "--requests", unusable).exit_code == 2
    assert service.run("keys", "limits", "key_none").exit_code == 2
    assert service.run("models", "list").exit_code == 0  # the API has started, and can be stopped
