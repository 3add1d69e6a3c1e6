"""The queries of deploy/: those of the dashboard's panels, and those of the alerts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "toque.json").read_text("utf-8"))
ALERTS_FILE = DEPLOY / "prometheus" / "alerts.yaml"
ALERTS: list[dict[str, Any]] = yaml.safe_load(ALERTS_FILE.read_text("utf-8"))["groups"][0]["rules"]

_VARIABLES = {"$__rate_interval": "10s", "$job": ".*", "$model": ".*"}
_NO_NAMES = re.compile(
    r"\{[^}]*\}"  # selectors
    r"|\[[^]]*\]"  # ranges
    r"|\b\w+\s+(?:by|without)\s*\([^)]*\)"  # aggregations
    r"|\b(?:on|ignoring)\s*\([^)]*\)"
    r"|\boffset\s+\w+"
    r"|\b\d[\d.e]*\b"
    r"|\b(?:or|and|unless|bool)\b"
    r"|\b\w+(?=\s*\()"  # functions
)


def panel_queries() -> Iterator[tuple[str, str]]:
    """Each query of each panel, under the panel's title, with values for Grafana's variables."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"]
            for name, value in _VARIABLES.items():
                query = query.replace(name, value)
            yield panel["title"], query


def metric_names(query: str) -> set[str]:
    """The names of the metrics in a query."""
    return set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", _NO_NAMES.sub(" ", query)))
