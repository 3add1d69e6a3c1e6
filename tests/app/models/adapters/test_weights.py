"""Safetensors read without the library, held against it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from app.models.adapters.weights import FLOATS, DamagedWeightsError, Tensor, is_plausible, read_tensors
from tests.support.peft_folder import bad_weights, tensors


def read(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        return read_tensors(file)


def as_the_library_reads(path: Path) -> dict[str, tuple[str, list[int]]]:
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        return {name: (each.get_dtype(), each.get_shape()) for name, each in slices.items()}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("weights") / "good"
    save_file(tensors(), path, {"format": "pt"})
    return path.read_bytes()


@pytest.mark.parametrize("case", [name for name, *_ in bad_weights(b"")])
def test_what_the_library_refuses_too(tmp_path: Path, good: bytes, case: str) -> None:
    path = tmp_path / "bad"
    path.write_bytes(next(content for name, content, _ in bad_weights(good) if name == case))
    with pytest.raises(DamagedWeightsError):
        read(path)
    with pytest.raises(SafetensorError):
        as_the_library_reads(path)


@settings(max_examples=300)
@given(data=st.data())
def test_what_is_accepted_the_library_reads_alike(
    tmp_path_factory: pytest.TempPathFactory, good: bytes, data: st.DataObject
) -> None:
    header = 8 + int.from_bytes(good[:8], "little")
    changed = bytearray(good)
    for place in data.draw(st.lists(st.integers(0, header - 1), min_size=1, max_size=3)):
        changed[place] = data.draw(st.sampled_from(b'0123456789[]{},":-. FB\x00\xff'))
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    path.write_bytes(changed)
    try:
        ours = {name: (tensor.dtype, tensor.shape) for name, tensor in read(path).items()}
    except DamagedWeightsError:
        return
    if all(dtype in FLOATS for dtype, _ in ours.values()):
        assert as_the_library_reads(path) == ours


@pytest.mark.parametrize("place", [0, 1, 2**18 - 1, 2**18, 2**20])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), -6e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_bad_number_is_found_wherever_it_is(
    tmp_path: Path, dtype: torch.dtype, bad: float, place: int
) -> None:
    weights = torch.full([2**20 + 1], -9.0, dtype=dtype)
    for value, plausible in ((9.0, True), (bad, False)):
        weights[place] = value
        save_file({"w": weights}, tmp_path / "w")
        with (tmp_path / "w").open("rb") as file:
            assert is_plausible(file, read_tensors(file)["w"], 1e4) is plausible


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_limit_holds_to_a_factor_of_four(tmp_path: Path, dtype: torch.dtype) -> None:
    for exponent in range(-8, 15):
        save_file({"w": torch.tensor([2.0**exponent], dtype=dtype)}, tmp_path / "w")
        with (tmp_path / "w").open("rb") as file:
            tensor = read_tensors(file)["w"]
            assert is_plausible(file, tensor, 2.0**exponent)
            assert not is_plausible(file, tensor, 2.0**exponent / 4.01)
