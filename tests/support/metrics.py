"""Reads `/metrics`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from tests.support.waiting import wait_until

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: str) -> Samples:
    """Each sample's value by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def await_metrics(http: httpx2.Client, condition: Callable[[Samples], Any], what: str) -> Samples:
    """The samples, once they are as they should be; they may be a second old."""

    def read() -> Samples | None:
        samples = parse(http.get("/metrics").text)
        return samples if condition(samples) else None

    found: Samples = wait_until(read, what)
    return found
