"""A base model with an adapter's weights in it, held against PEFT's own merge."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.core.settings import BaseModelEntry
from workers import merged_model
from workers.merged_model import MergeError, main, merge

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in several files, with files beside them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE", "old.bin"):
        (folder / name).write_text(name)
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["lora", "rslora"])
def adapter(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    torch.manual_seed(1)
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "down_proj"],
        use_rslora=request.param,
        task_type="CAUSAL_LM",
    )
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(folder)
    return folder


def weights_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_its_weights_are_the_bases_and_the_adapters(base: Path, adapter: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "merged"
    merge(adapter, base, target)

    config = json.loads((adapter / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    before, after, halves = (weights_of(folder) for folder in (base, target, adapter))
    assert after.keys() == before.keys()
    changed: set[str] = set()
    for name, tensor in before.items():
        half = f"base_model.model.{name.removesuffix('.weight')}.lora_{{}}.weight"
        expected = tensor.float()
        if half.format("A") in halves:
            expected = expected + scale * halves[half.format("B")] @ halves[half.format("A")]
            changed.add(name.split(".")[-2])
        assert after[name].dtype == torch.bfloat16
        torch.testing.assert_close(after[name].float(), expected, rtol=2**-8, atol=1e-6)
        assert torch.equal(after[name], tensor) == (half.format("A") not in halves)
    assert changed == {"q_proj", "down_proj"}


def test_it_loads_as_any_model_does(base: Path, adapter: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    merge(adapter, base, tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert model.dtype == torch.bfloat16
    plain: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft: Any = PeftModel.from_pretrained(plain, adapter).merge_and_unload().to(torch.bfloat16)
    for (name, ours), theirs in zip(model.named_parameters(), peft.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name, rtol=2**-7, atol=1e-5)  # one rounding apart


def test_the_folder_has_all_that_the_base_has(base: Path, adapter: Path, tmp_path: Path) -> None:
    merge(adapter, base, tmp_path / "merged")
    names = {path.name for path in base.iterdir()} - {"old.bin"}
    assert {path.name for path in (tmp_path / "merged").iterdir()} == names
    assert (tmp_path / "merged" / "chat_template.jinja").read_text() == "chat_template.jinja"
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    merge(adapter, base, tmp_path / "other", "{{ messages[0].content }}")
    assert (tmp_path / "other" / "chat_template.jinja").read_text() == "{{ messages[0].content }}"


def test_what_cannot_be_merged_leaves_nothing(base: Path, adapter: Path, tmp_path: Path) -> None:
    bad = shutil.copytree(adapter, tmp_path / "bad")
    (bad / "adapter_model.safetensors").write_bytes(b"")
    for folder, says in ((bad, "cannot be merged: .*no header"), (tmp_path / "none", "cannot read")):
        with pytest.raises(MergeError, match=says):
            merge(folder, base, tmp_path / "merged")
    with pytest.raises(MergeError, match="exists already"):
        merge(adapter, base, bad)
    quantized = shutil.copytree(base, tmp_path / "quantized")
    config = json.loads((base / "config.json").read_text()) | {"quantization_config": {"bits": 4}}
    (quantized / "config.json").write_text(json.dumps(config))
    with pytest.raises(MergeError, match="is quantized"):
        merge(adapter, quantized, tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "quantized"]


@pytest.fixture
def catalogue(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = BaseModelEntry(name="tiny", source=str(base))
    monkeypatch.setenv("TOQUE_BASE_MODELS", f"[{entry.model_dump_json()}]")


@pytest.mark.usefixtures("catalogue")
def test_the_command(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    into = ["--into", str(tmp_path / "merged")]
    assert main([str(adapter), *into]) == 1
    assert "has: tiny. Name the adapter's base with --base-model" in capsys.readouterr().err
    assert main([str(adapter), "--base-model", "tiny", *into]) == 0
    assert "tiny with the adapter's weights" in capsys.readouterr().out
    assert main([str(adapter), "--base-model", "tiny", *into]) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.usefixtures("catalogue")
def test_a_machine_without_torch(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert main([str(adapter), "--base-model", "tiny", "--into", str(tmp_path / "merged")]) == 1
    assert "which is not installed here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_module_itself_needs_no_torch() -> None:
    check = f"import sys, {merged_model.__name__}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)
