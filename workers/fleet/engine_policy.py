"""Tells Ray Serve how many replicas a base model's deployment shall have.

Serve copies this module into its controller, while what it imports is read from the installation there.
"""

from __future__ import annotations

from typing import Any

from workers.fleet.engine_demand import engine_demand


class EnginePolicy:
    """An autoscaling policy that follows the requests that gateways record, as Serve itself sees none.

    See https://docs.ray.io/en/releases-2.60.0/serve/advanced-guides/advanced-autoscaling.html.
    """

    def __init__(self, base_model: str) -> None:
        self._base_model = base_model

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Returns the number of replicas, and no state; `context` is Serve's `AutoscalingContext`."""
        engines = engine_demand().engines(self._base_model)
        return context.target_num_replicas if engines is None else engines, {}
