"""The engines of a fleet: a Ray Serve deployment for each base model that is asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

from app import __version__
from app.core.settings import Settings
from workers.fleet.cluster import Cluster
from workers.fleet.engine_policy import EnginePolicy
from workers.fleet.engine_replica import DRAIN_SECONDS, STOP_SECONDS, EngineReplica

log = logging.getLogger("toque.fleet")

_UPSCALE_SECONDS = 5.0
"""How long the second engine of a base is needed before it is started; the first is started at once."""
_HEALTH_SECONDS = 5.0


class EngineDeployments:
    """Deploys base models. From then on, Serve follows `EnginePolicy`, whether this process runs or not."""

    def __init__(self, cluster: Cluster, settings: Settings, command: Sequence[str]) -> None:
        """Starts Serve if it does not run yet; `command` runs an engine."""
        self._serve: Any = import_module("ray.serve")
        self._resource = cluster.resource
        self._settings = settings
        self._command = command
        self._name = f"engine-{__version__}"
        self._serve.start(proxy_location="Disabled")
        applications = self._serve.status().applications
        self._deployed = {name for name, found in applications.items() if self._name in found.deployments}

    def follow(self, base_models: Iterable[str]) -> None:
        """Deploys the base models that are not deployed, or by an earlier version, without any engine yet."""
        for base_model in base_models:
            if base_model not in self._deployed:
                self._deploy(base_model)
                self._deployed.add(base_model)

    def _deploy(self, base_model: str) -> None:
        idle_seconds = self._settings.engine_idle_seconds
        policy = {
            "policy_function": f"{EnginePolicy.__module__}:{EnginePolicy.__name__}",
            "policy_kwargs": {"base_model": base_model},
        }
        deployment = self._serve.deployment(
            EngineReplica,
            name=self._name,
            ray_actor_options={"num_gpus": 1, "num_cpus": 0} if self._resource == "GPU" else {"num_cpus": 1},
            autoscaling_config={
                "min_replicas": 0,
                "initial_replicas": 0,
                "max_replicas": self._settings.fleet_engines_per_base,
                "upscale_delay_s": _UPSCALE_SECONDS,
                "downscale_delay_s": idle_seconds,
                "downscale_to_zero_delay_s": 0,  # the policy has waited already
                "policy": policy,
            },
            health_check_period_s=_HEALTH_SECONDS,
            graceful_shutdown_timeout_s=(self._settings.engine_drain_seconds or DRAIN_SECONDS) + STOP_SECONDS,
        )
        bound = deployment.bind(self._command, base_model, __version__)
        target = self._serve.RunTarget(bound, name=base_model, route_prefix=None)
        self._serve.run_many([target], wait_for_applications_running=False)
        log.info("%s is deployed", base_model)
