"""The files of a prepared base model, as small as they may be: nothing can be computed with them."""

from __future__ import annotations

import json
from pathlib import Path

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def write_model(folder: Path, *, template: str | None = TEMPLATE) -> None:
    """The files of a model, as small as they may be."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    folder.mkdir(parents=True, exist_ok=True)
    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
    architectures = ["LlamaForCausalLM"]
    config = {
        "architectures": architectures,
        "_model_name_or_path": "/somewhere/else",
        "max_position_embeddings": 512,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"is_local": True, "model_max_length": 10**30}))
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "model.safetensors").chmod(0o600)
    if template:
        (folder / "chat_template.jinja").write_text(template)
