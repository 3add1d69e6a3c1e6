"""Every query of deploy/ in a real Prometheus, which reads a real API: `make test-dashboards`."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from sqlalchemy import delete

from app.core.database import Database
from app.core.settings import Settings
from app.fine_tuning.models import Worker
from tests.support.dashboards import ALERTS, ALERTS_FILE, DEPLOY, panel_queries
from tests.support.engine_stand_in import ASK, EngineStandIn
from tests.support.service import run_service
from tests.support.traffic import prepare, send, send_until_engines_are_known
from tests.support.waiting import wait_until

pytestmark = pytest.mark.one_database
WAITS = {"for", "keep_firing_for"}


class Prometheus:
    """A Prometheus that is running."""

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http

    def is_ready(self) -> bool:
        try:
            return self._http.get("/status/buildinfo").status_code == 200
        except httpx2.TransportError:
            return False

    def query(self, query: str) -> list[dict[str, Any]]:
        """What a query gives now; fails if Prometheus cannot evaluate it."""
        answer = self._http.get("/query", params={"query": query}).json()
        assert answer["status"] == "success", (query, answer)
        return answer["data"]["result"]

    def rules(self) -> dict[str, dict[str, Any]]:
        """The alerts by name, with their state and their health."""
        groups = self._http.get("/rules").json()["data"]["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}

    def fires(self, name: str) -> bool:
        return self.rules()[name]["state"] == "firing"


@contextmanager
def run_prometheus(target: str, folder: Path) -> Iterator[Prometheus]:
    """Prometheus as deploy/ configures it, but faster, and with alerts that do not wait."""
    binary = shutil.which("prometheus")
    assert binary, "Prometheus is not installed: make test-dashboards installs it"
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text("utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    rules = [{name: rule[name] for name in rule.keys() - WAITS} for rule in ALERTS]
    (folder / "alerts.yaml").write_text(yaml.safe_dump({"groups": [{"name": "toque", "rules": rules}]}))
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [binary, f"--config.file={folder}/prometheus.yaml", f"--web.listen-address={address}"]
    command += [f"--storage.tsdb.path={folder}/data", "--log.level=error"]
    url = f"http://{address}/api/v1"
    with subprocess.Popen(command) as process, httpx2.Client(base_url=url, timeout=10) as http:
        try:
            prometheus = Prometheus(http)
            wait_until(prometheus.is_ready, "Prometheus starts")
            yield prometheus
        finally:
            process.kill()


def test_promtool_has_nothing_to_say() -> None:
    for arguments in (("config", "prometheus.yaml"), ("rules", "--lint=all", "--lint-fatal", "alerts.yaml")):
        done = subprocess.run(
            ["promtool", "check", *arguments],
            cwd=ALERTS_FILE.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_query_gives_something_and_alerts_fire(
    settings: Settings, database: Database, engine: EngineStandIn, tmp_path: Path
) -> None:
    prepare(database)
    with ExitStack() as running:
        service = running.enter_context(run_service(settings.model_copy(update={"heartbeat_seconds": 600.0})))
        http = running.enter_context(service.http())
        send_until_engines_are_known(http)
        with run_prometheus(service.url.removeprefix("http://"), tmp_path) as prometheus:
            for title, query in panel_queries():
                assert_it_gives_something(prometheus, title, query, http)
            for rule in ALERTS:
                prometheus.query(rule["expr"])
            wait_until(lambda: all(each["health"] == "ok" for each in prometheus.rules().values()), "rules")
            alerts = ("ToqueNoWorker", "ToqueNoEngine", "ToqueApiDown")
            assert not any(prometheus.fires(name) for name in alerts)

            with database.writer() as session:
                session.execute(delete(Worker))
            engine.behaviour = "ill"
            wait_until(lambda: prometheus.fires("ToqueNoWorker"), "an alert that there is no worker")
            http.post("/v1/chat/completions", json=ASK)  # after an answer that failed, the engine is probed
            wait_until(lambda: prometheus.fires("ToqueNoEngine"), "an alert that there is no engine")
            running.close()
            wait_until(lambda: prometheus.fires("ToqueApiDown"), "an alert that there is no API")


def assert_it_gives_something(prometheus: Prometheus, title: str, query: str, http: httpx2.Client) -> None:
    def give() -> list[Any]:
        send(http)
        return [each for each in prometheus.query(query) if each["value"][1] != "NaN"]

    wait_until(give, f"{title}: {query}")
