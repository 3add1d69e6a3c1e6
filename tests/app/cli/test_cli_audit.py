"""`toque audit` and what commands leave in the audit log."""

from __future__ import annotations

import json
from getpass import getuser
from socket import gethostname

from tests.support.command import Service


def test_commands_and_requests_are_exported_oldest_first(service: Service) -> None:
    created = json.loads(service.run("keys", "create", "audited", "--json").stdout)
    service.run("keys", "revoke", created["id"])
    asked = service.run("aliases", "set", "audited", "--model", "smollm2-135m-instruct")
    assert asked.exit_code == 0, asked.output
    exported = [json.loads(line) for line in service.run("audit", "export").stdout.splitlines()]
    mine = [each for each in exported if created["id"] in json.dumps(each)]
    assert [each["type"] for each in mine] == ["api_key.created", "api_key.deleted"]
    [requested] = [
        each for each in exported if each["after"].get("name") == "audited" and "alias" in each["type"]
    ]
    assert (requested["type"], requested["actor"]["type"]) == ("alias.created", "api_key")
    user = {"user": {"id": getuser()}, "ip_address": gethostname()}
    assert mine[0]["actor"] == {"type": "session", "session": user}
    assert created["key"] not in json.dumps(exported)
    assert [each["effective_at"] for each in exported] == sorted(each["effective_at"] for each in exported)
