"""The Ray cluster that the fleet runs on: how it is joined, and whether its nodes can be used."""

from __future__ import annotations

import logging
import os
from importlib import import_module
from typing import Any

from workers.fleet.nodes import Node, describe_this_node

log = logging.getLogger("toque.fleet")

NAMESPACE = "toque"
JOIN_SECONDS = 60.0
"""Time for the nodes to say what they run; the first task on a node starts a process there."""


class UnusableClusterError(Exception):
    """The cluster cannot be joined until somebody changes something; the message says what."""


class Cluster:
    """A connection to a Ray cluster."""

    def __init__(self, address: str | None, resource: str = "") -> None:
        """Joins the cluster at `address`; without one, at RAY_ADDRESS or on this machine.

        `resource` is what workers and engines are placed by, `GPU` or `CPU`; empty: by what nodes have.

        Raises:
            ConnectionError: it cannot be reached now.
            UnusableClusterError: it refuses the token, or runs other versions.
        """
        if os.environ.get("RAY_AUTH_MODE") != "token":
            raise UnusableClusterError(
                "set RAY_AUTH_MODE=token, here and where the nodes of the cluster start"
            )
        try:
            self.ray: Any = import_module("ray")
        except ModuleNotFoundError as error:
            raise UnusableClusterError("Ray is not installed: run `make install-fleet`") from error
        try:
            self.ray.init(
                address or "auto", namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING
            )
        except (ConnectionError, self.ray.exceptions.AuthenticationError) as error:
            if "AuthenticationError" in f"{type(error)} {error.__cause__}":  # Ray wraps it in others
                raise UnusableClusterError("the cluster refuses the token of RAY_AUTH_TOKEN_PATH") from error
            raise
        except RuntimeError as error:  # Ray says so where its own version or Python's differs
            raise UnusableClusterError(str(error)) from error
        self._resource = resource
        self._answers: dict[str, Any] = {}
        """By node: reference to what it will say of itself."""
        self._usable: set[str] = set()
        self._problems: dict[str, str] = {}

    @property
    def resource(self) -> str:
        """Returns what workers and engines are placed by: what was said, or `CPU` if no node has a GPU."""
        return self._resource or ("GPU" if self.ray.cluster_resources().get("GPU") else "CPU")

    def unusable_nodes(self, patience: float = 0.0) -> dict[str, str]:
        """Returns the nodes that the fleet cannot use, and why, as far as they say so within `patience` s.

        A node is asked once, when it has joined.
        """
        alive = {node["NodeID"]: node["NodeManagerAddress"] for node in self.ray.nodes() if node["Alive"]}
        self._problems = {name: problem for name, problem in self._problems.items() if name in alive}
        self._answers = {name: answer for name, answer in self._answers.items() if name in alive}
        for node_id in alive.keys() - self._usable - self._problems.keys() - self._answers.keys():
            self._answers[node_id] = self._ask(node_id)
        answers = list(self._answers.values())
        said: list[Any] = (
            self.ray.wait(answers, num_returns=len(answers), timeout=patience)[0] if answers else []
        )
        for node_id in [node_id for node_id, answer in self._answers.items() if answer in said]:
            if (problem := self._find_problem(self._answers.pop(node_id))) is None:
                self._usable.add(node_id)
            else:
                self._problems[node_id] = f"node {alive[node_id]} {problem}"
        return dict(self._problems)

    def _ask(self, node_id: str) -> Any:
        """Returns a reference to the node's answer."""
        strategies: Any = import_module("ray.util.scheduling_strategies")
        there = strategies.NodeAffinitySchedulingStrategy(node_id, soft=False)
        task = self.ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(describe_this_node)
        return task.remote()

    def _find_problem(self, answer: Any) -> str | None:
        """Returns what is wrong with a node."""
        try:
            return Node(**self.ray.get(answer)).problem()
        except self.ray.exceptions.RayError as error:
            return f"cannot run Toque: {str(error).strip().splitlines()[-1]}"
