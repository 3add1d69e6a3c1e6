"""Reports on engines for `toque engines`, from their rows and from vLLM's own metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from sqlalchemy.orm import Session

from app.completions import service
from app.completions.models import Engine
from app.completions.replicas import configured_id
from app.completions.vllm_client import VllmConnection
from app.core.settings import Settings

_SAMPLE_SECONDS = 1.0
_ANSWER_SECONDS = 5.0
"""How long an engine may be silent, which computes steps of its own meanwhile."""


@dataclass(slots=True)
class EngineReport:
    """An engine's row and its current metrics, which are None where it does not answer."""

    id: str
    base_model: str
    url: str
    device: str | None
    version: str | None
    status: str
    detail: str
    running: int | None = None
    """Requests that are being computed."""
    waiting: int | None = None
    """Requests that wait to be computed."""
    tokens_per_second: float | None = None
    adapters: list[str] | None = None
    """Adapters in the engine's memory; for a vLLM that is not ours, those that ran last."""


def list_engines(session: Session, settings: Settings) -> Sequence[tuple[EngineReport, VllmConnection]]:
    """Returns a report on every engine that has a row or is named in the settings, and a connection to it."""
    rows = [
        (_of_row(engine, is_alive=is_alive), VllmConnection(engine.url, engine.api_key, _ANSWER_SECONDS))
        for engine, is_alive in service.all_engines(session, settings)
    ]
    given = [
        (
            EngineReport(configured_id(address), address.base_model, address.url, None, None, "given", ""),
            VllmConnection(address.url, address.api_key.get_secret_value(), _ANSWER_SECONDS),
        )
        for address in settings.engine_urls
    ]
    return [*rows, *given]


async def ask_engines(engines: Iterable[tuple[EngineReport, VllmConnection]]) -> None:
    """Completes the reports with metrics; where an engine does not answer, `detail` says so."""
    await asyncio.gather(*(_ask(report, connection) for report, connection in engines))


async def _ask(report: EngineReport, connection: VllmConnection) -> None:
    if not connection.url or report.status == "silent":
        return
    try:
        before, _ = _read(await connection.metrics())
        began = time.monotonic()
        await asyncio.sleep(_SAMPLE_SECONDS)
        now, running = _read(await connection.metrics())
        seconds = time.monotonic() - began
        try:
            adapters = await connection.adapters()
        except ConnectionError:  # a vLLM that is not ours
            adapters = running
    except (TimeoutError, ConnectionError, ValueError) as error:
        report.detail = report.detail or str(error)
        return
    finally:
        await connection.close()
    report.running = int(now.get("vllm:num_requests_running", 0))
    report.waiting = int(now.get("vllm:num_requests_waiting", 0))
    tokens = "vllm:generation_tokens_total"
    report.tokens_per_second = round((now.get(tokens, 0) - before.get(tokens, 0)) / seconds, 1)
    report.adapters = adapters


def _read(text: str) -> tuple[dict[str, float], list[str]]:
    """Returns the metrics summed by name, and the adapters in LoRA slots."""
    families: Iterable[Metric] = text_string_to_metric_families(text)
    samples = [sample for family in families for sample in family.samples]
    sums: dict[str, float] = {}
    for sample in samples:
        sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums, _adapters([sample for sample in samples if sample.name == "vllm:lora_requests_info"])


def _adapters(samples: list[Sample]) -> list[str]:
    """Returns the adapters that ran last; each sample is a set of adapters, its value their last run."""
    found: dict[str, None] = {}
    slots = 0
    for sample in sorted(samples, key=lambda sample: sample.value, reverse=True):
        slots = int(sample.labels["max_lora"])
        found |= dict.fromkeys(filter(None, sample.labels["running_lora_adapters"].split(",")))
    return list(found)[:slots]


def _of_row(engine: Engine, *, is_alive: bool) -> EngineReport:
    return EngineReport(
        id=engine.id,
        base_model=engine.base_model,
        url=engine.url,
        device=engine.device,
        version=engine.version,
        status=engine.status if is_alive else "silent",
        detail=engine.detail,
    )
