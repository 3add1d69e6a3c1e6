"""The one live service that all clients are tried against, with a model that is fine-tuned first."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from openai import OpenAI

from tests.clients.kitchen import training_data
from tests.support.base_models import prepared_base_models
from tests.support.deployment import KEY, start
from tests.support.service import BASE_MODEL
from tests.support.waiting import wait_until


@dataclass(frozen=True)
class LiveService:
    """A service, as its clients know it."""

    base_url: str
    api_key: str
    base_model: str
    base_folder: Path
    """Where the base model's files are."""
    model: str
    """The fine-tuned model."""


@contextmanager
def live_service() -> Iterator[LiveService]:
    """Runs `toque serve` with the demo's base model, and fine-tunes a model that calls functions."""
    with tempfile.TemporaryDirectory(prefix="toque-clients-") as folder:
        models = prepared_base_models()
        running = start(Path(folder), models)
        try:
            with running.client() as client:
                model = _fine_tune(client)
            yield LiveService(f"{running.url}/v1", KEY, BASE_MODEL, models / BASE_MODEL, model)
        finally:
            running.process.send_signal(signal.SIGINT)
            running.process.wait(timeout=60)


def _fine_tune(client: OpenAI) -> str:
    file = client.files.create(file=("kitchen.jsonl", training_data()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=BASE_MODEL,
        training_file=file.id,
        suffix="kitchen",
        seed=1,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}},
    )

    def ended() -> str | None:
        seen = client.fine_tuning.jobs.retrieve(job.id)
        assert seen.status not in ("failed", "cancelled"), seen.error
        return seen.fine_tuned_model if seen.status == "succeeded" else None

    return wait_until(ended, "the model is fine-tuned", seconds=1200)
