"""Is the API quick and small while a job trains on every core? `python -m benchmarks.api`.

Starts `toque serve`, trains the demo's job, and meanwhile asks for the job 20 times a second. The last line
is one JSON object: `ready_seconds`, `p50_ms`, `p95_ms`, `requests`, `api_rss_mib`, `left_behind` (processes
alive after the service was stopped).
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import psutil

from app.core.settings import Settings
from app.demo.house_style import TRAINING_FILE
from app.demo.service import running_service
from app.models.catalogue import Catalogue

INTERVAL_SECONDS = 0.05
REQUESTS = 600


def main() -> None:
    settings = Settings()
    with tempfile.TemporaryDirectory(prefix="toque-bench-") as folder:
        started = time.monotonic()
        with running_service(settings, Path(folder)) as service, service.client() as client:
            service.await_ready(lambda _: None)
            ready_seconds = time.monotonic() - started
            file = client.files.create(file=TRAINING_FILE, purpose="fine-tune")
            job = client.fine_tuning.jobs.create(
                model=Catalogue(settings).engine_base.name, training_file=file.id, seed=1
            )
            while not any(event.type == "metrics" for event in client.fine_tuning.jobs.list_events(job.id)):
                time.sleep(0.5)
            milliseconds: list[float] = []
            while (
                len(milliseconds) < REQUESTS and client.fine_tuning.jobs.retrieve(job.id).status == "running"
            ):
                asked = time.perf_counter()
                client.fine_tuning.jobs.retrieve(job.id)
                milliseconds.append((time.perf_counter() - asked) * 1000)
                time.sleep(INTERVAL_SECONDS)
            children = psutil.Process(service.process.pid).children(recursive=True)
            api = next(child for child in children if "api" in child.cmdline())
            api_rss_mib = api.memory_info().rss / 2**20
        _, alive = psutil.wait_procs(children, timeout=5)
    percentiles = statistics.quantiles(milliseconds, n=20)
    summary = {
        "ready_seconds": round(ready_seconds, 1),
        "requests": len(milliseconds),
        "p50_ms": round(percentiles[9], 1),
        "p95_ms": round(percentiles[18], 1),
        "api_rss_mib": round(api_rss_mib, 1),
        "left_behind": len(alive),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
