"""A RayCluster of KubeRay (`ray.io/v1`), as far as the chart uses it; its pods are validated as such.

The names and types are those of KubeRay's API reference: https://ray-project.github.io/kuberay/reference/api/.
"""

from __future__ import annotations

from typing import Any

_COUNT = {"type": "integer", "minimum": 0}
_OBJECT = {"type": "object"}
_START_OPTIONS = {
    "type": "object",
    "propertyNames": {"pattern": "^[a-z][a-z-]*[a-z]$"},
    "additionalProperties": {"type": "string"},
}


def _fields(required: tuple[str, ...], **fields: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": fields,
        "additionalProperties": False,
    }


_AUTOSCALER = _fields(
    (),
    idleTimeoutSeconds=_COUNT,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    image={"type": "string"},
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    env={"type": "array"},
    envFrom={"type": "array"},
    volumeMounts={"type": "array"},
    securityContext=_OBJECT,
    resources=_OBJECT,
)
_HEAD = _fields(("rayStartParams", "template"), rayStartParams=_START_OPTIONS, template=_OBJECT)
_NODES = _fields(
    ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    groupName={"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"},
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    rayStartParams=_START_OPTIONS,
    template=_OBJECT,
)
_REDIS = _fields(("redisAddress",), redisAddress={"type": "string"}, redisPassword=_OBJECT)

RAY_CLUSTER = _fields(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayCluster"},
    metadata=_OBJECT,
    spec=_fields(
        ("headGroupSpec",),
        rayVersion={"type": "string"},
        enableInTreeAutoscaling={"type": "boolean"},
        autoscalerOptions=_AUTOSCALER,
        gcsFaultToleranceOptions=_REDIS,
        headGroupSpec=_HEAD,
        workerGroupSpecs={"type": "array", "items": _NODES},
    ),
)
"""A JSON schema."""
