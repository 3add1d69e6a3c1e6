"""The self-test finds what a base's configuration does not say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from app.models.token_mixing import TokenMixing
from tests.support.tiny_bases import write_tiny_base
from tests.support.trainer import with_
from workers.training import model, self_test, trainer
from workers.training.decoder_layers import decoder_layers
from workers.training.failure import UntrainableError
from workers.training.layouts import self_test as test_of_layouts
from workers.training.protocol import TrainingSpec
from workers.training.ranks import Ranks


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    monkeypatch.setattr(model, "compute_dtype", lambda device: request.param)
    return request.param


def load(family: str, folder: Path, **changes: Any) -> PreTrainedModel:
    write_tiny_base(family, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return model.load_base(folder, torch.device("cpu"))


def test_a_plain_base_is_packed(dtype: torch.dtype, tmp_path: Path) -> None:
    found = test_of_layouts.self_test(load("llama", tmp_path))
    assert found.layout == "packed"
    assert 0 < found.largest_difference < (1e-4 if dtype == torch.float32 else 0.5)


@pytest.mark.parametrize("family", ["qwen3_next", "falcon_h1", "lfm2", "gemma2", "gpt_oss"])
def test_packed_rows_that_differ_are_found(
    dtype: torch.dtype, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were one of these taken for a base whose tokens mix by causal attention alone."""
    monkeypatch.setattr(
        test_of_layouts, "token_mixing", lambda config, longest: TokenMixing("packed", "a mistake")
    )
    found = test_of_layouts.self_test(load(family, tmp_path))
    assert found.layout == "padded"
    assert "in the self-test" in found.reason
    assert found.largest_difference < (1e-4 if dtype == torch.float32 else 0.5)


def test_a_base_that_looks_ahead_is_refused(
    dtype: torch.dtype, tmp_path: Path, spec: TrainingSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    load("gemma", tmp_path, use_bidirectional_attention=True)
    with pytest.raises(UntrainableError, match="what follows a sequence changes") as caught:
        trainer.load_supported_base(with_(spec, base_model_dir=str(tmp_path)), Ranks())
    assert caught.value.code == "unsupported_base_model"


def test_a_base_whose_padded_rows_mix_is_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    """Each row is given the mean of all rows' thirteenth tokens, which are no padding."""
    base = load("mistral", tmp_path)
    next(decoder_layers(base)).register_forward_hook(
        lambda _, __, hidden: hidden + hidden[:, 12:13].mean(0) if len(hidden) > 1 else hidden
    )
    found = test_of_layouts.self_test(base)
    assert found.layout is None
    assert "in a batch, sequences differ from single ones" in found.reason
    assert found.largest_difference > 0.5


def test_a_base_without_marked_decoder_layers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could be neither sharded nor recomputed layer by layer."""
    base = load("llama", tmp_path)
    monkeypatch.setattr(test_of_layouts, "decoder_layers", lambda base: iter(()))
    found = test_of_layouts.self_test(base)
    assert found.layout is None
    assert "does not mark its decoder layers" in found.reason


def test_the_command_prints_one_json_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load("gemma3", tmp_path)
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["self_test", str(tmp_path)])
    self_test.main()
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() == {"layout", "reason", "largest_difference"}
    assert printed["layout"] == "padded"
    assert "window of 16 tokens" in printed["reason"]
