"""`toque models add`: tested on this machine, written into the catalogue, and usable at once."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from openai import OpenAI

from app.core.settings import Settings
from app.models.catalogue import Catalogue
from tests.support.chat_templates import THINKING
from tests.support.command import TOQUE
from tests.support.hub import run_hub
from tests.support.service import BASE_MODEL
from tests.support.tiny_bases import write_tiny_base


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base("qwen3", tmp_path_factory.mktemp("bases") / "Tiny Qwen3")


def models(settings: Settings, *arguments: str, **environment: str) -> tuple[int, str]:
    here = {
        "TOQUE_DATA_DIR": str(settings.data_dir),
        "TOQUE_DATABASE_URL": settings.database_url,
        "TOQUE_MODELS_DIR": str(settings.data_dir / "models"),
    }
    done = subprocess.run(
        [*TOQUE, "models", *arguments],
        env=os.environ | here | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.one_database
def test_a_folder(settings: Settings, client: OpenAI, tiny: Path) -> None:
    options = ["--max-rank", "16", "--quantization", "nf4", "--tool-parser", "hermes"]
    template = settings.data_dir / "template.jinja"
    template.write_text(THINKING)
    thinking = [f"--chat-template={template}", '--chat-template-kwargs={"enable_thinking": false}']
    thinking += ["--allowed-template-kwargs", "enable_thinking"]
    code, said = models(settings, "add", str(tiny), *options, *thinking)
    assert code == 0, said
    entry = Catalogue.load(settings).get("tiny-qwen3")
    assert entry.quantization == "nf4"
    assert (entry.chat_template, entry.chat_template_kwargs) == (THINKING, {"enable_thinking": False})
    assert entry.allowed_template_kwargs == ["enable_thinking"]
    assert "trained in packed batches, because" in said
    # 2,048 positions are fewer than what memory allows.
    assert "tiny-qwen3: added to the catalogue, context 2,048, rank up to 16, tool parser hermes" in said
    assert [model.id for model in client.models.list()] == [BASE_MODEL, "tiny-qwen3"]
    code, said = models(settings, "add", str(tiny))
    assert (code, "has a base model 'tiny-qwen3' already" in said) == (1, True)
    code, said = models(settings, "add", str(tiny), "--name", "smol", "--chat-template", "smollm2")
    assert code == 0, said
    assert Catalogue.load(settings).get("smol").chat_template == "smollm2"
    code, said = models(settings, "add", str(tiny), "--name", "long", "--context", "4096")
    assert (code, "--context must be from 64 to 2,048" in said) == (1, True)
    code, said = models(settings, "add", str(tiny), "--name", "other", "--tool-parser", "hermès")
    assert (code, "--tool-parser: vLLM has no tool parser 'hermès'" in said) == (1, True)
    code, said = models(settings, "add", str(tiny), "--name", "other", "--quantization", "nf5")
    assert (code, "--quantization: Input should be 'nf4'" in said) == (1, True)
    code, said = models(settings, "add", str(tiny), "--name", "other", "--chat-template-kwargs", "[]")
    assert (code, "--chat-template-kwargs is not a JSON object" in said) == (1, True)
    template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    silent = ["--tool-parser", "hermes", "--chat-template", str(template)]
    code, said = models(settings, "add", str(tiny), "--name", "other", *silent)
    assert (code, "does not show tools to the model" in said) == (1, True)
    template.write_text("{% for")
    code, said = models(settings, "add", str(tiny), "--name", "other", "--chat-template", str(template))
    assert (code, "the chat template does not render a greeting" in said) == (1, True)
    for name in ("smol", "tiny-qwen3"):
        assert models(settings, "remove", name)[0] == 0
    assert [model.id for model in client.models.list()] == [BASE_MODEL]


@pytest.mark.one_database
def test_one_of_a_hub(settings: Settings, client: OpenAI, tiny: Path) -> None:
    with run_hub() as hub:
        hub.add("kitchen/Tiny", tiny)
        code, said = models(settings, "pull", "kitchen/Tiny", "--also-known-as", "gpt-9", HF_ENDPOINT=hub.url)
        assert code == 0, said
        assert client.models.retrieve("gpt-9").id == "tiny"
        assert (settings.data_dir / "models" / "tiny" / "model.safetensors").is_file()
        assert models(settings, "remove", "tiny")[0] == 0
        hub.add("other/Tiny", tiny)
        code, said = models(settings, "pull", "other/Tiny", HF_ENDPOINT=hub.url)
    assert (code, "is from kitchen/Tiny, and tiny is to be from other/Tiny" in said) == (1, True), said


@pytest.mark.one_database
def test_the_context_ends_where_longrope_would_rotate_otherwise(
    settings: Settings, client: OpenAI, tmp_path: Path
) -> None:
    folder = write_tiny_base("phi3", tmp_path / "phi")
    config = json.loads((folder / "config.json").read_text())
    half = config["hidden_size"] // config["num_attention_heads"] // 2
    factors = {"short_factor": [1.0] * half, "long_factor": [2.0] * half}
    rope = config["rope_parameters"] | factors | {"rope_type": "longrope"}
    rope["original_max_position_embeddings"] = 512
    changed = {"rope_parameters": rope, "original_max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(config | changed))
    code, said = models(settings, "add", str(folder))
    assert code == 0, said
    assert Catalogue.load(settings).get("phi").context == 512
    code, said = models(settings, "add", str(folder), "--name", "long", "--context", "1024")
    assert (code, "--context must be from 64 to 512" in said) == (1, True), said


@pytest.mark.one_database
def test_what_cannot_be_trained_is_not_added(settings: Settings, client: OpenAI, tmp_path: Path) -> None:
    broken = write_tiny_base("qwen3", tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "no-such-model"}))
    code, said = models(settings, "add", str(broken))
    assert (code, "cannot be trained" in said) == (1, True), said
    assert [model.id for model in client.models.list()] == [BASE_MODEL]
    assert "neither a folder nor a hub id" in models(settings, "add", "qwen")[1]


@pytest.mark.one_database
def test_what_cannot_be_served_is_refused_by_name(settings: Settings, client: OpenAI, tmp_path: Path) -> None:
    code, said = models(settings, "add", str(write_tiny_base("gpt2", tmp_path / "gpt2")))
    assert (code, "its architecture (GPT2LMHeadModel) cannot be served with LoRA" in said) == (1, True), said
    assert [model.id for model in client.models.list()] == [BASE_MODEL]
