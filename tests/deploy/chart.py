"""The Helm chart with each of its sets of values, rendered and validated without a cluster: `make chart`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from helm_python import Chart, lint

from app.core.database import Database
from app.core.settings import Settings
from app.fine_tuning.models import FineTuningJob
from tests.deploy.prometheus_queries import run_prometheus
from tests.deploy.ray_cluster_schema import RAY_CLUSTER
from tests.support.dashboards import DEPLOY
from tests.support.engine_stand_in import ASK, EngineStandIn
from tests.support.job_rows import add_job
from tests.support.service import run_service
from tests.support.waiting import wait_until

CHART = DEPLOY / "chart"
VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
RAY_VALUES: dict[str, Any] = yaml.safe_load((CHART / "ci" / "ray-values.yaml").read_text("utf-8"))
ROOT = Path(__file__).parents[2]
KUBERNETES = "1.33"
METRICS = ("toque_queued_jobs", "toque_engines_needed")
INFORMATION = 1
CUSTOM = {"ScaledJob", "ScaledObject", "RayCluster"}
"""KEDA's and KubeRay's kinds, of whose schemas `kubernetes_validate` knows nothing."""


@pytest.fixture(params=VALUES, ids=lambda path: path.name.removesuffix("-values.yaml"))
def values(request: pytest.FixtureRequest) -> dict[str, Any]:
    return yaml.safe_load(request.param.read_text("utf-8"))


def render(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of the chart with these values."""
    with Chart.load(CHART) as chart:
        files = chart.render(values=values, name="toque", namespace="kitchen")
    return [each for text in files.values() for each in yaml.safe_load_all(text) if each]


def pods(objects: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every object that runs pods, with each of its templates."""
    for each in objects:
        spec = each.get("spec", {})
        match each["kind"]:
            case "Deployment" | "Job":
                yield each, spec["template"]
            case "ScaledJob":
                yield each, spec["jobTargetRef"]["template"]
            case "RayCluster":
                for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
                    yield each, group["template"]
            case _:
                pass


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
    for each in objects:
        if each["kind"] == "RayCluster":
            jsonschema.validate(each, RAY_CLUSTER)
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(names) == len(set(names))


def test_pods_have_no_more_rights_than_they_need(values: dict[str, Any]) -> None:
    for owner, template in pods(render(values)):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"], owner
        assert spec["automountServiceAccountToken"] is False
        for container in spec.get("initContainers", []) + spec["containers"]:
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


def test_a_ray_cluster_replaces_what_keda_scales() -> None:
    objects = render(RAY_VALUES)
    kinds = {each["kind"] for each in objects}
    assert not kinds & {"ScaledJob", "ScaledObject"}
    assert [each["metadata"]["name"] for each in objects if each["kind"] == "Deployment"] == ["toque-api"]
    (cluster,) = (each["spec"] for each in objects if each["kind"] == "RayCluster")
    locked = (ROOT / "requirements" / "fleet.txt").read_text("utf-8")
    assert f"\nray=={cluster['rayVersion']} " in locked
    groups = [
        (each["groupName"], each["minReplicas"], each["maxReplicas"]) for each in cluster["workerGroupSpecs"]
    ]
    assert groups == [("single", 0, 16), ("eight", 0, 2)]
    assert cluster["enableInTreeAutoscaling"]
    settings = next(each["data"] for each in objects if each["kind"] == "ConfigMap")
    assert settings["TOQUE_FLEET_RESOURCE"] == "GPU"
    assert settings["TOQUE_FLEET_WORKERS"] == "24"
    assert settings["TOQUE_FLEET_ENGINES_PER_BASE"] == "8"


def test_ray_asks_for_a_token_and_its_head_runs_the_fleet() -> None:
    objects = render(RAY_VALUES)
    (cluster,) = (each["spec"] for each in objects if each["kind"] == "RayCluster")
    head = cluster["headGroupSpec"]["template"]["spec"]
    containers = [each for _, template in pods(objects) for each in template["spec"]["containers"]]
    ray = [each for each in containers if each["image"].startswith("registry.example.com/team/toque-fleet:")]
    assert [each["name"] for each in ray] == ["ray-head", "fleet", "ray-node", "ray-node"]
    for container in (*ray, cluster["autoscalerOptions"]):
        variables = {each["name"]: each for each in container["env"]}
        assert variables["RAY_AUTH_MODE"]["value"] == "token"
        token = variables["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
        assert token == {"name": "toque-ray", "key": "auth_token"}
    fleet = ray[1]
    assert fleet["args"][:2] == ["toque", "fleet"]
    assert head["shareProcessNamespace"]
    mounts = [
        {each["mountPath"]: each["name"] for each in container["volumeMounts"]} for container in ray[:2]
    ]
    assert mounts[0] == mounts[1], "a process of the head's machine finds there what the head does"
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    assert account not in mounts[0], "Kubernetes is for the autoscaler alone"
    assert account in {each["mountPath"] for each in cluster["autoscalerOptions"]["volumeMounts"]}
    rights = cluster["autoscalerOptions"]["securityContext"]
    assert rights == ray[0]["securityContext"]


def test_gateways_reach_engines_on_rays_nodes_and_nothing_else_there() -> None:
    objects = render(RAY_VALUES)
    (policy,) = (
        each["spec"]
        for each in objects
        if each["kind"] == "NetworkPolicy" and each["metadata"]["name"] == "toque-ray"
    )
    among_nodes, from_gateways = policy["ingress"]
    assert among_nodes == {"from": [{"podSelector": policy["podSelector"]}]}
    (ports,) = from_gateways["ports"]
    (cluster,) = (each["spec"] for each in objects if each["kind"] == "RayCluster")
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        of_ray = [int(value) for name, value in group["rayStartParams"].items() if name.endswith("port")]
        assert len(of_ray) == len(set(of_ray))
        assert not [port for port in of_ray if ports["port"] <= port <= ports["endPort"]]
        assert group["template"]["metadata"]["labels"]["toque/kind"] == "ray"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"storage": {"url": "s3://bucket"}}, "secret.existing or secret.values.TOQUE_DATABASE_URL"),
        ({"secret": {"existing": "toque"}}, "storage.url or storage.claim"),
        ({"secret": {"existing": "toque"}, "storage": {"url": "ftp://host"}}, "url"),
        ({"secret": {"existing": "toque"}, "stroage": {"url": "s3://bucket"}}, "stroage"),
        ({"secret": {"existing": "toque"}, "settings": {"toque_port": "1"}}, "toque_port"),
        (RAY_VALUES | {"ray": {"enabled": True}}, "ray.tokenSecret"),
        (RAY_VALUES | {"ray": {"enabled": True, "nodes": []}}, "nodes"),
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
