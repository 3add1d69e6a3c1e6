"""Which adapters may be published, and loaded by vLLM."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from app.models.adapters.validation import AdapterError, check_adapter, describe_adapter, module_shapes
from tests.support.peft_folder import BASE, FIRST, RANK, bad_weights, spoilt, tensors, write_adapter

FIRST_B = FIRST.replace("lora_A", "lora_B")


def refusal(folder: Path) -> tuple[str, str, str]:
    with pytest.raises(AdapterError) as caught:
        check_adapter(folder, BASE, RANK)
    return caught.value.file, caught.value.code, caught.value.message


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_adapter_as_peft_writes_it(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in tensors().items()}
    lora = check_adapter(write_adapter(tmp_path, weights, use_rslora=True), BASE, RANK)
    assert (lora.rank, lora.alpha, lora.scale, lora.modules) == (RANK, 8, 4.0, ["down_proj", "q_proj"])
    assert describe_adapter(tmp_path, None).modules == sorted(BASE)


def test_its_config_is_written_anew(tmp_path: Path) -> None:
    lora = check_adapter(write_adapter(tmp_path), BASE, RANK)
    assert json.loads(lora.config("soup-1b")) == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "soup-1b",
        "r": RANK,
        "lora_alpha": 8,
        "use_rslora": False,
        "target_modules": ["down_proj", "q_proj"],
        "bias": "none",
    }


def test_modules_are_named_in_full_where_not_all_layers_have_them(tmp_path: Path) -> None:
    larger = BASE | {"model.layers.1.mlp.down_proj": [8, 20]}
    lora = check_adapter(write_adapter(tmp_path), larger, RANK)
    assert lora.modules == sorted(BASE)


@pytest.mark.parametrize(
    ("config", "code", "says"),
    [
        ({"r": 8}, "rank_too_large", "its rank is 8; up to 4"),
        ({"r": "4"}, "invalid_adapter_config", "its rank"),
        ({"r": True}, "invalid_adapter_config", "its rank"),
        ({"r": 3}, "base_model_mismatch", "shape [4, "),
        ({"lora_alpha": float("inf")}, "invalid_adapter_config", "cannot be read"),
        ({"lora_alpha": 10**400}, "invalid_adapter_config", ""),
        ({"lora_alpha": 0}, "invalid_adapter_config", "lora_alpha is 0"),
        ({"lora_alpha": -8}, "invalid_adapter_config", "lora_alpha is -8"),
        ({"lora_alpha": 1e9}, "invalid_weights", "enormous"),
        ({"target_modules": []}, "invalid_adapter_config", "names no target_modules"),
        ({"use_rslora": "yes"}, "invalid_adapter_config", "use_rslora"),
        ({"peft_type": "LOHA"}, "unsupported_adapter", "peft_type"),
        ({"task_type": "SEQ_CLS"}, "unsupported_adapter", "task_type"),
        ({"bias": "all"}, "unsupported_adapter", "bias"),
        ({"use_dora": True}, "unsupported_adapter", "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "unsupported_adapter", "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "unsupported_adapter", "rank_pattern"),
        ({"alora_invocation_tokens": [1]}, "unsupported_adapter", "alora_invocation_tokens"),
        ({"vllm_lora_scaling_factor": 9}, "unsupported_adapter", "vllm_lora_scaling_factor"),
        ({"fan_in_fan_out": True}, "unsupported_adapter", "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "unsupported_adapter", "changes the base model"),
        ({"a\u0000\u202e" * 999: 1}, "unsupported_adapter", "it uses"),
        ({"lora_dropout": "x" * 2**20}, "invalid_adapter_config", "larger than 1 MiB"),
    ],
)
def test_configurations_that_are_not_served(
    tmp_path: Path, config: dict[str, Any], code: str, says: str
) -> None:
    file, found, message = refusal(write_adapter(tmp_path, **config))
    assert found == code
    assert says in message
    assert message.isprintable() and len(message) <= 600
    assert file == ("adapter_config.json" if "adapter_config" in code or "unsupp" in code else file)


@pytest.mark.parametrize(
    ("weights", "code", "says"),
    [
        *(
            (spoilt(float("nan"), d), "invalid_weights", "not numbers")
            for d in (torch.float32, torch.bfloat16)
        ),
        *((spoilt(float("-inf"), d), "invalid_weights", "numbers") for d in (torch.float16, torch.bfloat16)),
        (spoilt(float("nan"), torch.float16), "invalid_weights", "not numbers"),
        (spoilt(1e30), "invalid_weights", "enormous"),
        ({name: tensor.sign() * 9999 for name, tensor in tensors().items()}, "invalid_weights", "enormous"),
        ({name: tensor.sign() * 500 for name, tensor in tensors().items()}, "invalid_weights", "enormous"),
        (spoilt(60_000, torch.float16), "invalid_weights", "enormous"),
        (spoilt(float("nan"), name=FIRST_B), "invalid_weights", "lora_B"),
        ({}, "invalid_weights", "no weights"),
        ({FIRST: tensors()[FIRST]}, "invalid_weights", "only one half"),
        ({name: tensor.double() for name, tensor in tensors().items()}, "unsupported_adapter", "F64"),
        (tensors() | {FIRST: torch.randn(RANK, 9)}, "base_model_mismatch", "has shape [4, 9]"),
        (tensors() | {FIRST: torch.randn(RANK)}, "base_model_mismatch", "fits no module"),
        (
            tensors() | {"base_model.model.model.layers.9.x.lora_A.weight": torch.ones(4, 8)},
            "base_model_mismatch",
            "fits no module",
        ),
        (
            tensors() | {"base_model.model.lm_head.weight": torch.ones(9, 8)},
            "base_model_mismatch",
            "fits no module",
        ),
    ],
)
def test_weights_that_would_spoil_the_engine(
    tmp_path: Path, weights: dict[str, torch.Tensor], code: str, says: str
) -> None:
    file, found, message = refusal(write_adapter(tmp_path, weights))
    assert (file, found) == ("adapter_model.safetensors", code)
    assert says in message


@pytest.mark.parametrize("case", [name for name, *_ in bad_weights(b"")])
def test_files_that_are_no_safetensors(tmp_path: Path, case: str) -> None:
    path = write_adapter(tmp_path) / "adapter_model.safetensors"
    content, says = next(bad[1:] for bad in bad_weights(path.read_bytes()) if bad[0] == case)
    path.write_bytes(content)
    file, code, message = refusal(tmp_path)
    assert (file, code) == ("adapter_model.safetensors", "invalid_safetensors")
    assert says in message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe{}", b"[" * 100_000, b'{"r": NaN}'])
def test_configs_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    (write_adapter(tmp_path) / "adapter_config.json").write_bytes(content)
    assert refusal(tmp_path)[:2] == ("adapter_config.json", "invalid_adapter_config")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_links_and_pipes_are_no_files(tmp_path: Path, name: str) -> None:
    path = write_adapter(tmp_path / "a") / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert refusal(tmp_path / "a") == (name, "unsafe_files", f"'{name}' is a link")
    path.unlink()
    os.mkfifo(path)
    assert refusal(tmp_path / "a") == (name, "unsafe_files", f"{name} is not a file")
    path.unlink()
    path.mkdir()
    assert refusal(tmp_path / "a") == (name, "unsafe_files", f"{name} is not a file")


def test_a_folder_that_is_a_link_or_has_one(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (tmp_path / "link").symlink_to(folder)
    assert refusal(tmp_path / "link")[1:] == ("unsafe_files", "its folder is a link")
    (folder / "tokenizer.json").symlink_to("/etc/passwd")
    assert refusal(folder)[1:] == ("unsafe_files", "'tokenizer.json' is a link")


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_pickled_weights_are_refused_beside_others_or_alone(tmp_path: Path, name: str) -> None:
    folder = write_adapter(tmp_path)
    torch.save(tensors(), folder / name)
    assert refusal(folder)[:2] == (name, "unsafe_files")
    (folder / "adapter_model.safetensors").unlink()
    assert refusal(folder)[:2] == (name, "unsafe_files")


def test_a_flipped_bit_makes_another_number(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path)
    files = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / "manifest.json").write_text(json.dumps({"step": 3, "sha256": sums}))
    check_adapter(folder, BASE, RANK)
    weights = bytearray(files[1].read_bytes())
    weights[-4] ^= 1
    files[1].write_bytes(weights)
    assert refusal(folder)[:2] == ("adapter_model.safetensors", "checksum_mismatch")
    for broken in ("", "[]", '{"sha256": 1}'):
        (folder / "manifest.json").write_text(broken)
        assert refusal(folder)[:2] == ("manifest.json", "checksum_mismatch")


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors", ""])
def test_what_is_not_there_is_no_verdict(tmp_path: Path, missing: str) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / missing).rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        check_adapter(folder, BASE, RANK)


def test_the_base_models_linear_modules(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 100}')
    weights = {f"{module}.weight": torch.ones(shape) for module, shape in BASE.items()}
    others = {
        "model.embed_tokens.weight": torch.ones(100, 8),
        "lm_head.weight": torch.ones(100, 8),
        "model.norm.weight": torch.ones(8),
    }
    save_file(weights | others, tmp_path / "model.safetensors", {"format": "pt"})
    assert module_shapes(tmp_path) == BASE
    (tmp_path / "config.json").write_text('{"vocab_size": 7, "text_config": {"vocab_size": 100}}')
    assert module_shapes(tmp_path) == BASE, "the language model's part counts"
    save_file({"model.norm.weight": torch.ones(8)}, tmp_path / "model.safetensors", {"format": "pt"})
    assert module_shapes(tmp_path) == {}, "changed files are read again"
