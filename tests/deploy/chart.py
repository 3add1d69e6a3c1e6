"""The Helm chart with each of its sets of values, rendered and validated without a cluster: `make chart`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_python import Chart, lint

from app.core.database import Database
from app.core.settings import Settings
from app.fine_tuning.models import FineTuningJob
from tests.deploy.prometheus_queries import run_prometheus
from tests.support.dashboards import DEPLOY
from tests.support.engine_stand_in import ASK, EngineStandIn
from tests.support.job_rows import add_job
from tests.support.service import run_service
from tests.support.waiting import wait_until

CHART = DEPLOY / "chart"
VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
KUBERNETES = "1.33"
POD_TEMPLATES = {
    "Deployment": ("spec", "template"),
    "Job": ("spec", "template"),
    "ScaledJob": ("spec", "jobTargetRef", "template"),
}
"""Where the pods of each kind are described."""
METRICS = ("toque_queued_jobs", "toque_engines_needed")
INFORMATION = 1
CUSTOM = {"ScaledJob", "ScaledObject"}
"""KEDA's kinds, of whose schemas `kubernetes_validate` knows nothing: of them, the pods are validated."""


@pytest.fixture(params=VALUES, ids=lambda path: path.name.removesuffix("-values.yaml"))
def values(request: pytest.FixtureRequest) -> dict[str, Any]:
    return yaml.safe_load(request.param.read_text("utf-8"))


def render(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of the chart with these values."""
    with Chart.load(CHART) as chart:
        files = chart.render(values=values, name="toque", namespace="kitchen")
    return [each for text in files.values() for each in yaml.safe_load_all(text) if each]


def pods(objects: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every object that runs pods, with their template."""
    for each in objects:
        if each["kind"] in POD_TEMPLATES:
            template = each
            for field in POD_TEMPLATES[each["kind"]]:
                template = template[field]
            yield each, template


def triggers(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [trigger["metadata"] for each in objects for trigger in each.get("spec", {}).get("triggers", [])]


def test_helm_has_nothing_to_say(values: dict[str, Any]) -> None:
    report = lint(CHART, values=values, strict=True)
    assert not report["errors"], report
    assert not [each for each in report["messages"] if each["severity"] > INFORMATION], report


def test_every_object_is_valid(values: dict[str, Any]) -> None:
    objects = render(values)
    for each in objects:
        if each["kind"] not in CUSTOM:
            kubernetes_validate.validate(each, KUBERNETES, strict=True)
    for owner, template in pods(objects):
        as_object = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": owner["metadata"]}
        kubernetes_validate.validate(as_object | {"template": template}, KUBERNETES, strict=True)
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(names) == len(set(names))


def test_pods_have_no_more_rights_than_they_need(values: dict[str, Any]) -> None:
    for owner, template in pods(render(values)):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"], owner
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            rights = container["securityContext"]
            assert rights["readOnlyRootFilesystem"]
            assert rights["capabilities"] == {"drop": ["ALL"]}
            assert not rights["allowPrivilegeEscalation"]
            is_migration = container["name"] == "upgrade"
            said = yaml.safe_dump(container)
            assert "TOQUE_API_KEY" not in said
            assert (values["secret"].get("existing", "toque-migrations") in said) or not is_migration


def test_what_is_selected_is_there(values: dict[str, Any]) -> None:
    objects = render(values)
    labels = [template["metadata"]["labels"] for _, template in pods(objects)]
    for each in objects:
        spec = each.get("spec", {})
        selectors = [spec.get("selector"), spec.get("podSelector")]
        for selector in filter(None, selectors):
            wanted = selector.get("matchLabels", selector)
            assert any(wanted.items() <= found.items() for found in labels), (each["kind"], wanted)
    deployments = {each["metadata"]["name"] for each in objects if each["kind"] == "Deployment"}
    for each in objects:
        if each["kind"] == "ScaledObject":
            assert each["spec"]["scaleTargetRef"]["name"] in deployments


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"storage": {"url": "s3://bucket"}}, "secret.existing or secret.values.TOQUE_DATABASE_URL"),
        ({"secret": {"existing": "toque"}}, "storage.url or storage.claim"),
        ({"secret": {"existing": "toque"}, "storage": {"url": "ftp://host"}}, "url"),
        ({"secret": {"existing": "toque"}, "stroage": {"url": "s3://bucket"}}, "stroage"),
        ({"secret": {"existing": "toque"}, "settings": {"toque_port": "1"}}, "toque_port"),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said):
        render(wrong)


@pytest.mark.one_database
def test_every_trigger_follows_the_work(
    settings: Settings, database: Database, engine: EngineStandIn, tmp_path: Path
) -> None:
    objects = render(yaml.safe_load((CHART / "ci" / "object-store-values.yaml").read_text("utf-8")))
    queued, needed = (next(each for each in triggers(objects) if name in each["query"]) for name in METRICS)
    with ExitStack() as running:
        service = running.enter_context(run_service(settings))
        http = running.enter_context(service.http())
        prometheus = running.enter_context(run_prometheus(service.url.removeprefix("http://"), tmp_path))

        def value(trigger: dict[str, Any]) -> float:
            (found,) = prometheus.query(trigger["query"])
            return float(found["value"][1])

        assert value(queued) == value(needed) == 0
        with database.writer() as session:
            add_job(session)
            session.get_one(FineTuningJob, "ftjob-t").status = "queued"
        http.post("/v1/chat/completions", json=ASK).raise_for_status()
        wait_until(lambda: value(queued) == 1, "a worker for each job that waits")
        wait_until(lambda: value(needed) == 1, "an engine for the base model that is asked for")
