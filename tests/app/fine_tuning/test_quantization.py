"""Jobs on a quantized base: the catalogue's default, what is refused, and what a dry run makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from app.core.settings import BaseModelEntry, Settings
from app.fine_tuning.geometry import Geometry
from app.fine_tuning.packing import JobWork, Work
from app.fine_tuning.preflight.estimates import Basis, Estimate, estimate
from tests.support.jobs import create
from tests.support.tiny_bases import write_tiny_base
from tests.support.tiny_model import write_tiny_model

pytestmark = pytest.mark.one_database


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    sources = {"tiny": write_tiny_model(tmp_path / "tiny")}
    sources["mixtral"] = write_tiny_base("mixtral", tmp_path / "mixtral")
    entries = [BaseModelEntry(name=name, source=str(folder), context=512) for name, folder in sources.items()]
    packed = entries[0].model_copy(update={"name": "packed", "quantization": "nf4"})
    return settings.model_copy(update={"base_models": [*entries, packed]})


def test_the_catalogues_entry_is_the_default(client: OpenAI) -> None:
    def quantization(model: str, **parameters: Any) -> str:
        return create(client, model=model, **parameters).hyperparameters.to_dict()["quantization"]

    assert quantization("tiny") == "none"
    assert quantization("packed") == "nf4"
    assert quantization("packed", extra_body={"quantization": "none"}) == "none"
    assert quantization("packed", extra_body={"quantization": "auto"}) == "nf4"


def test_a_base_of_which_most_cannot_be_packed_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, model="mixtral", extra_body={"quantization": "nf4"})
    assert refused.value.param == "quantization"
    assert "'mixtral' cannot be trained in nf4: only 18% of its weights are in linear layers" in str(
        refused.value
    )
    assert "most are those of experts" in str(refused.value)


def test_a_dry_run_counts_the_packed_base(client: OpenAI) -> None:
    def memory(model: str) -> dict[str, Any]:
        return create(client, model=model, extra_body={"dry_run": True}).to_dict()["memory"]

    plain, packed = memory("tiny"), memory("packed")
    assert (plain["quantization"], packed["quantization"]) == ("none", "nf4")
    assert plain["activation_checkpointing"] is False
    assert packed["base_model_bytes"] < plain["base_model_bytes"]


def test_activations_are_recomputed_only_where_they_would_not_fit(settings: Settings) -> None:
    geometry = Geometry.load(Path(settings.base_models[0].source))
    micro_batch = Work(micro_batches=1, tokens=2000, rows=2000, scores=4e6, targets=10)
    work = JobWork(training=micro_batch, evaluation=Work(), micro_batches=[micro_batch])

    def estimated(memory: int) -> Estimate:
        basis = Basis(
            "default",
            "Some GPU",
            memory,
            speed=1e12,
            startup_seconds=0.0,
            resident_memory_bytes=10**6,
            value_bytes=2,
        )
        return estimate(geometry, basis, work, trainable=geometry.trainable(4), tokens=2000)

    roomy = estimated(2**40)
    assert not roomy.activation_checkpointing
    assert not estimated(roomy.peak_memory_bytes).activation_checkpointing
    tight = estimated(roomy.peak_memory_bytes - 1)
    assert tight.activation_checkpointing
    assert tight.activation_memory_bytes < 0.7 * roomy.activation_memory_bytes  # of two layers, one at a time
    assert roomy.seconds < tight.seconds < 1.5 * roomy.seconds
