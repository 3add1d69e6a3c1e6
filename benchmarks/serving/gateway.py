"""What the gateway costs: the same requests to a stand-in engine directly, through `toque api`, through a
naive proxy and through `vllm-router`.

Every proxy has one core; the load generator and the stand-in engine share the other. So a proxy's requests a
second are its own limit while they stay well below those that the generator and the engine reach without it
(`direct`). All speak TCP. Ours checks the key and the model in its database; the other two check nothing.

`stream_ratio` is of 32 streams whose engine makes a token every 10 ms, 3200 a second in all, which is more
than many an engine does. `instant_stream_ratio` is of streams without a pace: what one core can pass on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.serving.deployment import API_KEY
from benchmarks.serving.load_generator import Load, Outcome, generate
from benchmarks.serving.measurements import Measurements, progress
from benchmarks.serving.proxies import DIRECT, LOAD_CORE, NAIVE, ROUTER, TOQUE, Server, running_servers
from benchmarks.serving.stand_in_engine import INSTANT, PACED

LATENCY_RATE = 50.0
STREAMS = 32
STREAM_TOKENS = 64
_MESSAGES = [
    {"role": "system", "content": "You are the Larkspoon help desk."},
    {
        "role": "user",
        "content": "My ice cream maker stopped in the middle of a batch, and will not go on. " * 7,
    },
]


def measure(folder: Path, rounds: int, quick: bool) -> dict[str, Any]:
    """Runs all measurements; those of `vllm-router` are None where it does not run."""
    seconds = 1.0 if quick else 4.0
    measured = Measurements()
    with running_servers(folder) as servers:
        for number in range(rounds):
            for name, server in servers.items():
                outcome = load(server, seconds=seconds)
                measured.add(f"{name}_requests_per_second", outcome.rate)
            for name in (DIRECT, TOQUE):
                outcome = load(servers[name], seconds=4 * seconds, rate=LATENCY_RATE)
                measured.add(f"{name}_p50_ms", outcome.p50_ms)
                measured.add(f"{name}_p99_ms", outcome.p99_ms)
            for name, server in servers.items():
                for model, requests in ((INSTANT, 640), (PACED, 128)):
                    rate = stream(server, model, requests // 4 if quick else requests)
                    measured.add(f"{name}_{model}_tokens_per_second", rate * STREAM_TOKENS)
            progress(f"gateway {number + 1}/{rounds}: {measured.last()}")
        memory = resident_memory(servers[TOQUE], 2_000 if quick else 20_000)
        has_router = ROUTER in servers
    rate = "{}_requests_per_second".format
    return {
        "gateway_added_p50_ms": measured.median_difference(f"{TOQUE}_p50_ms", f"{DIRECT}_p50_ms"),
        "gateway_added_p99_ms": measured.median_difference(f"{TOQUE}_p99_ms", f"{DIRECT}_p99_ms"),
        "naive_ratio": measured.ratio(rate(TOQUE), rate(NAIVE)),
        "vllm_router_ratio": measured.ratio(rate(TOQUE), rate(ROUTER)) if has_router else None,
        **{
            key: measured.ratio(f"{TOQUE}_{model}_tokens_per_second", f"{DIRECT}_{model}_tokens_per_second")
            for key, model in (("stream_ratio", PACED), ("instant_stream_ratio", INSTANT))
        },
        **memory,
        "gateway": measured.spreads(),
    }


def load(server: Server, *, seconds: float, rate: float = 0.0) -> Outcome:
    """Returns the load of plain requests, as many as 16 connections allow or at a given rate."""
    body = {"model": INSTANT, "messages": _MESSAGES, "max_tokens": 80, "temperature": 0.7}
    outcome = generate(Load(server.port, body, API_KEY, seconds=seconds, rate=rate), LOAD_CORE)
    assert not outcome.failures, outcome
    return outcome


def stream(server: Server, model: str, requests: int) -> float:
    """Returns the streams per second, with 32 at once."""
    body = {"model": model, "messages": _MESSAGES, "max_tokens": STREAM_TOKENS, "stream": True}
    outcome = generate(Load(server.port, body, API_KEY, connections=STREAMS, requests=requests), LOAD_CORE)
    assert not outcome.failures, outcome
    return outcome.rate


def resident_memory(server: Server, requests: int) -> dict[str, Any]:
    """Returns the gateway's memory before and after many streams, warmed up by a tenth as many."""
    stream(server, INSTANT, requests // 10)
    before = server.resident_mib()
    stream(server, INSTANT, requests)
    after = server.resident_mib()
    return {
        "gateway_rss_growth_mib": round(after - before, 1),
        "gateway_rss_before_mib": round(before, 1),
        "streamed_requests": requests,
    }
