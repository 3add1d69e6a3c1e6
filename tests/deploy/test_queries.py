"""The dashboard and the alerts in deploy/ ask for metrics that there are."""

from __future__ import annotations

import re

import httpx2
import pytest

from app.core.database import Database
from tests.support.dashboards import ALERTS, DASHBOARD, metric_names, panel_queries
from tests.support.engine_stand_in import EngineStandIn
from tests.support.traffic import prepare, send_until_engines_are_known

OF_PROMETHEUS = {"up"}


@pytest.mark.one_database
def test_every_metric_is_exposed(http: httpx2.Client, database: Database, engine: EngineStandIn) -> None:
    prepare(database)
    send_until_engines_are_known(http)
    text = http.get("/metrics").text
    exposed = {line.partition("{")[0].split()[0] for line in text.splitlines() if not line.startswith("#")}
    queries = [query for _, query in panel_queries()] + [rule["expr"] for rule in ALERTS]
    asked = set[str]().union(*map(metric_names, queries))
    assert len(asked) > 25
    assert asked - OF_PROMETHEUS <= exposed, asked - exposed


def test_names_are_found_in_queries() -> None:
    query = 'max by (a) (x_total{b="c"} offset 1h) / on () rate(vllm:y[5m]) > 5e9 and z == 1 or vector(0)'
    assert metric_names(query) == {"x_total", "vllm:y", "z"}


def test_the_dashboard_is_whole() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels if panel["type"] != "row"}) > 25
    names = {each["name"] for each in DASHBOARD["templating"]["list"]}
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not taken & cells, panel["title"]
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert {*re.findall(r"\$(\w+)", target["expr"])} <= names | {"__rate_interval"}


def test_every_alert_says_what_is_wrong() -> None:
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"].endswith(".")
        assert 'job="toque"' in rule["expr"]
