"""The base models that are known but not in the catalogue yet, read from known.toml."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from app.core.settings import BaseModelEntry
from app.fine_tuning.geometry import Geometry

_FILE = Path(__file__).with_name("known.toml")


class KnownBaseModel(BaseModel):
    """A base model of a hub, and what has to be known of it before it is downloaded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    source: str
    licence: str
    gated: bool = False
    """Whether the hub gives it only to those who have accepted its terms."""
    parameters: int
    context: int
    """The context that we advise, in tokens."""
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    allowed_template_kwargs: list[str] = []
    architecture: str
    config: dict[str, Any]
    """The part of its configuration that memory depends on."""

    @property
    def entry(self) -> BaseModelEntry:
        """The entry that it gets in the catalogue."""
        return BaseModelEntry(
            name=self.name,
            source=self.source,
            context=self.context,
            tool_parser=self.tool_parser,
            reasoning_parser=self.reasoning_parser,
            allowed_template_kwargs=self.allowed_template_kwargs,
        )

    @property
    def geometry(self) -> Geometry:
        """Its shape, for estimates of memory."""
        config = self.config
        hidden, layers = config["hidden_size"], config["num_hidden_layers"]
        queries = config["num_attention_heads"] * config["head_dim"]
        keys = config["num_key_value_heads"] * config["head_dim"]
        inner, experts = config["intermediate_size"], config.get("num_local_experts", 0)
        linear = {"q_proj": (hidden, queries), "k_proj": (hidden, keys), "v_proj": (hidden, keys)}
        linear["o_proj"] = (queries, hidden)
        if not experts:
            linear |= {"gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden)}
        return Geometry.of(
            config,
            parameters=self.parameters,
            experts=layers * experts * 3 * hidden * inner,
            linear={
                f"layers.{layer}.{name}": widths for layer in range(layers) for name, widths in linear.items()
            },
        )


@cache
def known_base_models() -> list[KnownBaseModel]:
    """Return them all, in the order of the file."""
    rows = tomllib.loads(_FILE.read_text("utf-8"))["base_models"]
    return [KnownBaseModel.model_validate(row) for row in rows]


def find_known(name: str) -> KnownBaseModel | None:
    """Return the one of that name or hub id, or None if it is not known."""
    wanted = name.lower()
    return next(
        (known for known in known_base_models() if wanted in (known.name, known.source.lower())), None
    )
