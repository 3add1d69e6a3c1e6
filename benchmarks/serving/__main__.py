"""Serving many adapters over one base: is it correct, fast, and cheap to reach?

    python -m benchmarks.serving [--only correctness,throughput] [--rounds 3] [--quick]

Two cores, no GPU, nothing else running. In turn: `correctness` (mixed batches against fp32), `throughput`
(mixed against base only, and against vLLM's own kernels), `cold_adapters` (64 adapters over 8 slots),
`gateway` (what it adds, and against other proxies), `restart` (the engine killed under load); each module
says how. The last line is one JSON object; quotients are of medians, lists are median, lowest and highest.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.serving import cold_adapters, correctness, gateway, restart, throughput
from benchmarks.serving.deployment import SLOTS, create_deployment
from benchmarks.serving.engines import StockVllm, running_vllm
from benchmarks.serving.measurements import progress

PARTS = ("correctness", "throughput", "cold_adapters", "gateway", "restart")
TARGETS = {
    "mixed_logprob_ratio": "at most 1.1",
    "contaminated": "0",
    "mixed_ratio": "at least 0.65",
    "stock_ratio": "at least 4",
    "base_ratio": "at least 1.0",
    "cold_ttft_ratio": "at most 1.5",
    "gap_ratio": "at most 2",
    "cold_failures": "0",
    "gateway_added_p50_ms": "at most 1.5",
    "gateway_added_p99_ms": "at most 5",
    "naive_ratio": "at least 4",
    "vllm_router_ratio": "",
    "stream_ratio": "at least 0.9",
    "gateway_rss_growth_mib": "flat",
    "restart_seconds": "at most 10",
    "restart_wrong": "0",
    "restart_bad_failures": "0",
}


def main() -> None:
    options = _options()
    for name in [name for name in os.environ if name.startswith("TOQUE_") and name != "TOQUE_MODELS_DIR"]:
        del os.environ[name]  # nothing of the developer's own deployment
    began, loads = time.monotonic(), [os.getloadavg()[0]]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="toque-bench-") as folder:
        for part in _parts(Path(folder), options):
            progress(json.dumps(part))
            results |= part
            loads.append(os.getloadavg()[0])
    results |= {
        "rounds": options.rounds,
        "cores": os.cpu_count(),
        "load_average": [round(load, 1) for load in loads],
        "seconds": round(time.monotonic() - began),
    }
    table = Table("", "measured", "wanted")
    for name, target in TARGETS.items():
        if name in results:
            table.add_row(name, str(results[name]), target)
    Console().print(table)
    print(json.dumps(results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it runs")
    options = parser.parse_args()
    if unknown := set(options.only) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return options


def _parts(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Runs the requested parts; returns the results of each."""
    if {"correctness", "throughput", "cold_adapters"} & set(options.only):
        yield from _engine_parts(folder / "engines", options)
    if "gateway" in options.only:
        yield gateway.measure(folder / "gateway", options.rounds, options.quick)
    if "restart" in options.only:
        yield restart.measure(folder / "restart")


def _engine_parts(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Runs the parts that ask engines directly: one with our kernels and, to compare, one without."""
    deployment = create_deployment(folder)
    base = deployment.base.name
    adapters = deployment.publish_adapters(
        cold_adapters.ADAPTERS if "cold_adapters" in options.only else SLOTS
    )
    few = adapters[:SLOTS]
    with running_vllm(deployment) as ours:
        progress("our engine is ready")
        if "correctness" in options.only:
            yield correctness.measure(ours, deployment, few, options.quick)
        if "throughput" in options.only:
            with running_vllm(deployment, StockVllm) as stock:
                progress("stock vLLM is ready")
                yield throughput.measure(ours, stock, base, few, options.rounds, options.quick)
        if "cold_adapters" in options.only:
            yield cold_adapters.measure(ours, base, adapters, options.quick)


if __name__ == "__main__":
    main()
