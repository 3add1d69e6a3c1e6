"""The CPU kernels against plain fp32 arithmetic."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU  # noqa: E402

from workers.inference import lora_stack  # noqa: E402
from workers.inference.punica_wrapper import DensePunicaWrapper  # noqa: E402

SLOTS, MAX_RANK = 4, 32
LAYERS = {"qkv": (96, (96, 32, 32)), "o": (96, (96,)), "gate_up": (96, (160, 160)), "down": (160, (96,))}


class Layer:
    """Stacked weights as vLLM's LoRA layers keep them."""

    def __init__(self, width: int, slices: tuple[int, ...]) -> None:
        self.width, self.slices = width, slices
        self.a = tuple(torch.zeros(SLOTS, 1, MAX_RANK, width, dtype=torch.bfloat16) for _ in slices)
        self.b = tuple(torch.zeros(SLOTS, 1, out, MAX_RANK, dtype=torch.bfloat16) for out in slices)

    def set_lora(self, slot: int, rank: int) -> None:
        for a, b in zip(self.a, self.b, strict=True):
            a[slot] = 0
            b[slot] = 0
            a[slot, 0, :rank].copy_(torch.randn(rank, self.width) / self.width**0.5)
            b[slot, 0, :, :rank].copy_(torch.randn(b.shape[2], rank) / rank**0.5)

    def reference(self, x: torch.Tensor, slots: list[int]) -> torch.Tensor:
        delta = torch.zeros(len(slots), sum(self.slices))
        for row, slot in enumerate(slots):
            if slot >= 0:
                parts = [
                    b[slot, 0].float() @ (a[slot, 0].float() @ x[row].float())
                    for a, b in zip(self.a, self.b, strict=True)
                ]
                delta[row] = torch.cat(parts)
        return delta


def wrapper_for(slots: list[int], *, is_prefill: bool = True) -> DensePunicaWrapper:
    wrapper = DensePunicaWrapper(1024, 64, torch.device("cpu"))
    set_rows(wrapper, slots, [slot + 1 for slot in range(SLOTS)], is_prefill=is_prefill)
    return wrapper


def set_rows(
    wrapper: DensePunicaWrapper, slots: list[int], owners: list[int | None], *, is_prefill: bool = True
) -> None:
    """`owners` are the ids of the adapters in the slots."""
    ids = [owners[slot] if slot >= 0 else 0 for slot in slots]
    mapping = SimpleNamespace(index_mapping=tuple(ids), prompt_mapping=tuple(ids), is_prefill=is_prefill)
    wrapper.update_metadata(mapping, owners, SLOTS + 1, 1000)


def apply(wrapper: DensePunicaWrapper, layer: Layer, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    result = y.clone()
    wrapper.add_lora_linear(result, x, layer.a, layer.b, 1.0, layer.slices)
    return result


def inputs(layer: Layer, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.randn(rows, sum(layer.slices)).to(torch.bfloat16)
    return y, torch.randn(rows, layer.width).to(torch.bfloat16)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("seed", range(6))
def test_rows_get_their_own_adapter_and_base_rows_exactly_nothing(kind: str, seed: int) -> None:
    rng = random.Random(f"{kind}{seed}")
    torch.manual_seed(seed)
    layer = Layer(*LAYERS[kind])
    for slot in rng.sample(range(SLOTS), rng.randint(1, SLOTS)):
        layer.set_lora(slot, rng.choice([1, 5, 8, 16, 32]))
    for rows in (1, 3, 16, 200):  # decode, and prefill
        choices = rng.sample(range(-1, SLOTS), rng.randint(1, SLOTS + 1))
        slots = sorted(rng.choices(choices, k=rows)) if rows > 16 else rng.choices(choices, k=rows)
        y, x = inputs(layer, rows)
        result = apply(wrapper_for(slots, is_prefill=rng.random() < 0.5), layer, y, x)
        expected = y.float() + layer.reference(x, slots)
        base = torch.tensor([slot < 0 for slot in slots])
        assert torch.equal(result[base], y[base])
        # bf16 has 8 bits: the inner result and the sum are rounded to it once each.
        torch.testing.assert_close(result.float(), expected, rtol=2**-6, atol=2**-5)


def test_a_slot_written_again_is_served_anew() -> None:
    torch.manual_seed(0)
    layer, wrapper = Layer(*LAYERS["qkv"]), wrapper_for([2, -1])
    layer.set_lora(2, 16)
    y, x = inputs(layer, 2)
    first = apply(wrapper, layer, y, x)
    layer.set_lora(2, 32)
    second = apply(wrapper, layer, y, x)
    assert not torch.equal(first, second)
    expected = y.float() + layer.reference(x, [2, -1])
    torch.testing.assert_close(second.float(), expected, rtol=2**-6, atol=2**-5)
    for weights in (*layer.a, *layer.b):
        weights[2] = 0  # as `reset_lora`
    assert torch.equal(apply(wrapper, layer, y, x), y)


def test_long_runs_and_mixed_rows_in_one_batch() -> None:
    torch.manual_seed(1)
    layer = Layer(*LAYERS["gate_up"])
    for slot in range(SLOTS):
        layer.set_lora(slot, 8 * (slot + 1))
    # Answers under way, then prompts: of adapters and of the base model, the same adapter twice.
    slots = [0, -1, 2, 1, -1, *[3] * 40, *[-1] * 50, 2, 2, *[1] * 33, *[1] * 5, *[0] * 32, -1]
    y, x = inputs(layer, len(slots))
    result = apply(wrapper_for(slots), layer, y, x)
    base = torch.tensor([slot < 0 for slot in slots])
    assert torch.equal(result[base], y[base])
    expected = y.float() + layer.reference(x, slots)
    torch.testing.assert_close(result.float(), expected, rtol=2**-6, atol=2**-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_settled_weights_are_reordered_and_mean_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reordered: list[torch.Size] = []
    create = lora_stack.vllm_ops.create_onednn_mm

    def noted(weight: torch.Tensor, *arguments: int) -> object:
        reordered.append(weight.shape)
        return create(weight, *arguments)

    monkeypatch.setattr(lora_stack.vllm_ops, "create_onednn_mm", noted)
    torch.manual_seed(3)
    layer, slots = Layer(*LAYERS[kind]), [0, -1, 3, 1, 2, -1, 2, 0]
    for slot in range(SLOTS):
        layer.set_lora(slot, 16)
    wrapper = wrapper_for(slots)
    for change in ("settled", "one adapter goes, another comes", "settled again"):
        if change.startswith("one"):
            layer.set_lora(1, 8)
            set_rows(wrapper, slots, [1, 99, 3, 4])
        for batch in range(40):
            y, x = inputs(layer, len(slots))
            result = apply(wrapper, layer, y, x)
            if batch in (0, 39):
                assert torch.equal(result[[1, 5]], y[[1, 5]])
                expected = y.float() + layer.reference(x, slots)
                torch.testing.assert_close(result.float(), expected, rtol=2**-6, atol=2**-5)
    assert len(reordered) == 2 * 2  # A and B, before the change and after it


def test_a_processor_without_onednn_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> object:
        raise RuntimeError("could not create a primitive descriptor")

    monkeypatch.setattr(lora_stack.vllm_ops, "create_onednn_mm", refuse)
    torch.manual_seed(4)
    layer, slots = Layer(*LAYERS["o"]), [0, 3, -1]
    layer.set_lora(0, 16)
    layer.set_lora(3, 16)
    wrapper = wrapper_for(slots)
    for _ in range(40):
        y, x = inputs(layer, len(slots))
        result = apply(wrapper, layer, y, x)
        expected = y.float() + layer.reference(x, slots)
        torch.testing.assert_close(result.float(), expected, rtol=2**-6, atol=2**-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_adapters_come_and_go_in_the_slots(kind: str) -> None:
    rng = random.Random(kind)
    torch.manual_seed(2)
    layer, wrapper = Layer(*LAYERS[kind]), wrapper_for([-1])
    owners: list[int | None] = [None] * SLOTS
    for number in range(60):
        for slot in rng.sample(range(SLOTS), rng.choice([0, 1, 1, 1, 2])):
            if rng.random() < 0.8 or owners[slot] is None:
                layer.set_lora(slot, rng.choice([4, 8, 16, 32]))
                # The same adapter written anew is not what vLLM does, but must be right too.
                owners[slot] = (
                    owners[slot] if owners[slot] and rng.random() < 0.2 else 100 + number * 10 + slot
                )
            else:
                owners[slot] = None
        held = [-1, *[slot for slot in range(SLOTS) if owners[slot] is not None]]
        slots = rng.choices(held, k=rng.choice([3, 16, 40]))
        set_rows(wrapper, slots, owners)
        y, x = inputs(layer, len(slots))
        for _ in range(rng.choice([1, 1, 40])):
            result = apply(wrapper, layer, y, x)
            torch.testing.assert_close(
                result.float(), y.float() + layer.reference(x, slots), rtol=2**-6, atol=2**-5
            )


def test_an_adapter_that_overflows_stays_in_its_rows() -> None:
    torch.manual_seed(0)
    layer = Layer(*LAYERS["down"])
    layer.set_lora(0, 16)
    layer.set_lora(3, 16)
    layer.a[0][3] = 3e38
    y, x = inputs(layer, 3)
    wrapper = wrapper_for([0, 3, -1])
    for _ in range(40):
        result = apply(wrapper, layer, y, x)
        assert torch.equal(result[2], y[2])
        assert torch.isfinite(result[0]).all()


def test_a_batch_without_adapters_is_left_alone() -> None:
    layer = Layer(*LAYERS["o"])
    layer.set_lora(SLOTS - 1, 16)
    y, x = inputs(layer, 5)
    assert torch.equal(apply(wrapper_for([-1] * 5), layer, y, x), y)


def test_rows_past_the_indices_are_padding() -> None:
    layer = Layer(*LAYERS["o"])
    layer.set_lora(0, 16)
    y, x = inputs(layer, 4)
    result = apply(wrapper_for([0, 0]), layer, y, x)
    assert torch.equal(result[2:], y[2:])
    assert not torch.equal(result[:2], y[:2])


def add_to_logits(wrapper: PunicaWrapperCPU) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the logits of a prompt's seven rows before and after, in a batch of two answers.

    For `prompt_logprobs`, vLLM computes them after the batch's own, with the batch's slots still in place.
    """
    ids = (1, 0)
    mapping = SimpleNamespace(index_mapping=ids, prompt_mapping=ids, is_prefill=True)
    wrapper.update_metadata(mapping, [1, 2, 3, 4], SLOTS + 1, 1000)
    a, b = torch.zeros(SLOTS, 1, 32, 96), torch.zeros(SLOTS, 1, 1000, 32)
    logits = torch.randn(7, 1000)
    before = logits.clone()
    wrapper.add_lora_logits(logits, torch.randn(7, 96), a, b, 1.0)
    return before, logits


def test_the_output_layer_is_left_alone_whatever_rows_are_asked_for() -> None:
    before, after = add_to_logits(DensePunicaWrapper(1024, 64, torch.device("cpu")))
    assert torch.equal(after, before)


def test_vllms_own_wrapper_fails_on_the_rows_of_a_prompt() -> None:
    """The reason for ours. Where this no longer fails, `add_lora_logits` is needed only for its speed."""
    with pytest.raises(RuntimeError):
        add_to_logits(PunicaWrapperCPU(1024, 64, torch.device("cpu")))


def test_an_adapter_of_the_output_layer_is_an_error_and_no_silence() -> None:
    wrapper = wrapper_for([0, -1])
    a, b = torch.zeros(SLOTS, 1, 32, 96), torch.zeros(SLOTS, 1, 1000, 32)
    b[0, 0, :, :8] = 1
    a[0, 0, :8] = 1
    with pytest.raises(NotImplementedError, match="output layer"):
        wrapper.add_lora_logits(torch.randn(2, 1000), torch.randn(2, 96), a, b, 1.0)
