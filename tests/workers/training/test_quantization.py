"""Training on a base in NF4, held against plain PEFT on the same weights, dequantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from openai import OpenAI
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from app.core.settings import Settings
from app.fine_tuning.geometry import Geometry
from tests.support.examples import Lines, colours
from tests.support.gradients import gradients, randomize
from tests.support.tiny_bases import write_tiny_base
from tests.support.tiny_model import write_tiny_model
from tests.support.trainer import Child, losses, with_
from tests.support.training_loop import train
from tests.support.worker import create, ended, run_worker
from workers.training import model, quantization, served_base
from workers.training.protocol import (
    Checkpoint,
    Failed,
    Finished,
    Noted,
    Progress,
    Started,
    Stopped,
    TrainingSpec,
    Warned,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two threads that wait for each other by spinning take ages where other tests keep the cores busy."""
    torch.set_num_threads(1)


class TwoLayers(nn.Module):
    """Two layers with biases: the first's input needs no gradient, the second's does."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.up = self._quantized(nn.Linear(96, 160, dtype=dtype))
        self.down = self._quantized(nn.Linear(160, 96, dtype=dtype))

    @staticmethod
    def _quantized(layer: nn.Linear) -> nn.Linear:
        dtype = layer.weight.dtype
        settings = quantization.nf4_config(dtype)
        packed = Linear4bit(
            layer.in_features,
            layer.out_features,
            compute_dtype=dtype,
            compress_statistics=settings.bnb_4bit_use_double_quant,
            quant_type=settings.bnb_4bit_quant_type,
            quant_storage=settings.bnb_4bit_quant_storage,
        )
        packed.load_state_dict(layer.state_dict())
        return packed.to(CPU).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


def dequantized(packed: TwoLayers) -> TwoLayers:
    """The same layers with the numbers that the packed ones stand for."""
    plain = TwoLayers(torch.float32)
    for name in ("up", "down"):
        layer = getattr(packed, name)
        same = nn.Linear(layer.in_features, layer.out_features)
        same.weight.data = quantization.unpacked(layer.weight, layer.quant_state).float()
        same.bias.data = layer.bias.data.float()
        setattr(plain, name, same)
    return plain


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_layer_computes_with_the_numbers_that_are_packed(dropout: float) -> None:
    base = TwoLayers(torch.float32)
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["up", "down"], "lora_dropout": dropout}
    reference = randomize(peft.get_peft_model(dequantized(base), peft.LoraConfig(**config)))
    ours = peft.LoraConfig(**config)
    ours._register_custom_module({nn.Linear: model.LoraLinear})
    adapted = randomize(peft.get_peft_model(base, ours))
    x = torch.randn(3, 7, 96)

    def output_and_gradients(each: nn.Module) -> tuple[Tensor, Tensor]:
        torch.manual_seed(3)
        output = each.train()(x)
        output.square().mean().backward()
        return output.detach(), gradients(each)

    torch.testing.assert_close(
        output_and_gradients(adapted), output_and_gradients(reference), rtol=1e-3, atol=1e-5
    )


@pytest.fixture(scope="module")
def wide_base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose weights are mostly those of its linear layers, as in bases that do not fit."""
    return write_tiny_model(
        tmp_path_factory.mktemp("wide"),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=3,
        initializer_range=0.05,
    )


@pytest.fixture
def wide(spec: TrainingSpec, wide_base_dir: Path, jsonl: Lines) -> TrainingSpec:
    validation = str(jsonl(colours(6), "validation.jsonl"))
    return with_(spec, base_model_dir=str(wide_base_dir), validation_file=validation, learning_rate=3e-3)


def test_the_base_takes_a_third_of_its_memory(wide_base_dir: Path) -> None:
    plain = model.load_base(wide_base_dir, CPU)
    packed = model.load_base(wide_base_dir, CPU, "nf4")
    in_bf16 = 2 * plain.num_parameters()
    assert quantization.stored_bytes(packed) <= 0.35 * in_bf16
    geometry = Geometry.load(wide_base_dir)
    value_bytes = model.compute_dtype(CPU).itemsize
    assert quantization.stored_bytes(packed) == pytest.approx(
        geometry.base_bytes(value_bytes, "nf4"), rel=0.01
    )
    assert quantization.stored_bytes(plain) == geometry.base_bytes(value_bytes, "none")


def finished(said: list[Progress]) -> Finished:
    assert isinstance(said[-1], Finished), said[-1]
    return said[-1]


def valid_loss(said: list[Progress]) -> float:
    newest = [message for message in said if isinstance(message, Checkpoint)][-1]
    assert newest.metrics.full_valid_loss is not None
    return newest.metrics.full_valid_loss


def test_a_job_in_nf4_ends_near_the_one_in_bf16(child: Child, wide: TrainingSpec) -> None:
    plain, packed = child.train(with_(wide)), child.train(with_(wide, quantization="nf4"))
    assert valid_loss(plain) < 0.7 * (losses(plain)[1] or 0), "something was learnt"
    assert valid_loss(packed) == pytest.approx(valid_loss(plain), rel=0.05)
    started = [each for said in (plain, packed) for each in said if isinstance(each, Started)]
    assert started[0].trainable_parameters == started[1].trainable_parameters
    # It is said what the adapter makes of the base as it is served.
    [note] = [message for message in packed if isinstance(message, Noted)]
    assert "The mean loss on 6 examples is" in note.message
    assert not any(isinstance(message, Noted) for message in plain)
    again = child.train(with_(wide))
    assert losses(again) == losses(plain), "the next job has the plain base again"


def test_engines_are_compared_with_the_base_as_it_is_served(
    child: Child, wide: TrainingSpec, wide_base_dir: Path
) -> None:
    done = finished(child.train(with_(wide, quantization="nf4")))
    base = AutoModelForCausalLM.from_pretrained(wide_base_dir, dtype=torch.float32)

    def logprobs(each: nn.Module, sample: Any) -> Tensor:
        logits = each(input_ids=torch.tensor([sample.input_ids])).logits[0]
        chosen = [logits[place - 1].log_softmax(-1)[sample.input_ids[place]] for place in sample.targets]
        return torch.stack(chosen).detach()

    served_base = [logprobs(base, sample) for sample in done.samples]
    served = peft.PeftModel.from_pretrained(base, done.path)
    packed = model.load_base(wide_base_dir, CPU, "nf4")
    assert len(done.samples) == 3
    for sample, of_base in zip(done.samples, served_base, strict=True):
        assert torch.tensor(sample.base) == pytest.approx(of_base, abs=0.05)
        assert torch.tensor(sample.trained) == pytest.approx(logprobs(served, sample), abs=0.05)
        assert (logprobs(packed, sample).float() - of_base).abs().mean() > 0.05, "they would differ"


def test_a_quantized_job_resumes_as_if_it_had_not_stopped(child: Child, wide: TrainingSpec) -> None:
    spec = with_(wide, quantization="nf4", lora_dropout=0.1)
    whole = child.train(spec)
    stopped = with_(spec)
    last = child.train(stopped, stop_after=4)[-1]
    assert isinstance(last, Stopped), last
    checkpoint = Path(stopped.output_dir) / "checkpoints" / f"step-{last.step}"
    resumed = child.train(with_(stopped, resume_from=str(checkpoint)))
    assert losses(resumed) == losses(whole)
    assert weights(finished(resumed)) == weights(finished(whole))


def test_a_job_succeeds_where_the_base_as_served_does_not_fit(
    wide: TrainingSpec, wide_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = model.load_warm_base(wide_base_dir, None, "nf4")

    with monkeypatch.context() as patch:
        patch.setattr(served_base, "_computable", lambda *_: torch.empty(1 << 60, dtype=torch.uint8))
        starved = train(with_(wide, quantization="nf4"), base)
    [warning] = [message for message in starved if isinstance(message, Warned)]
    assert "Not compared with the base as it is served" in warning.message
    assert finished(starved).samples == []
    again = train(with_(wide, quantization="nf4"), base)
    assert losses(again) == losses(starved), "the next job has the packed base again"
    assert len(finished(again).samples) == 3


def weights(done: Finished) -> bytes:
    return (Path(done.path) / "adapter_model.safetensors").read_bytes()


def test_a_base_that_cannot_be_packed_ends_the_job_with_the_reason(
    child: Child, spec: TrainingSpec, tmp_path: Path
) -> None:
    mixtral = write_tiny_base("mixtral", tmp_path / "mixtral")
    failed = child.train(with_(spec, base_model_dir=str(mixtral), quantization="nf4"))[-1]
    assert isinstance(failed, Failed)
    assert (failed.code, failed.param) == ("invalid_value", "quantization")
    assert "most are those of experts" in failed.message


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_job_and_its_model_say_how_the_base_was_stored(
    client: OpenAI, settings: Settings, tmp_path: Path
) -> None:
    with run_worker(settings, tmp_path):
        job = ended(client, create(client, extra_body={"quantization": "nf4"}).id)
    assert (job.status, job.error) == ("succeeded", None)
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
    assert any("stored in NF4 while it is trained" in message for message in messages)
    assert any("on the base in bf16, as served" in message for message in messages)
    checkpoint = client.fine_tuning.jobs.checkpoints.list(job.id).data[0].fine_tuned_model_checkpoint
    for name in (job.fine_tuned_model or "", checkpoint):
        assert client.models.retrieve(name).to_dict()["quantization"] == "nf4"
    assert client.models.retrieve("tiny").to_dict()["quantization"] is None
