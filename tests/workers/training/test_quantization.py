"""Training on a base in NF4, held against plain PEFT on the same weights, dequantized."""

from __future__ import annotations

import peft
import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from torch import Tensor, nn

from tests.support.gradients import gradients, randomize
from workers.training import model, quantization

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
