"""Adds a base model to the catalogue: prepares it, tests it on this machine, and writes its entry."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from app.audit.recorder import acting_as, this_user
from app.base_models.known import find_known
from app.base_models.memory import cache_bytes, cache_bytes_per_token
from app.base_models.parsers import REASONING_PARSERS, TOOL_PARSERS
from app.base_models.service import add_base_model, require_free_names
from app.base_models.stored import StoredBases
from app.core.child_environment import child_environment
from app.core.database import Database
from app.core.settings import BaseModelEntry, Settings
from app.datasets.chat_template import read_source
from app.models.adapters.base_shapes import linear_modules
from app.models.catalogue import template_options
from app.models.token_mixing import read_config
from app.storage import open_storage
from workers.base_models.errors import BaseModelError
from workers.base_models.preparation import HUB_ID, pull
from workers.device import Device

_CONTEXT = 8192
"""The context of a base model for which none is asked for, in tokens: longer ones cost memory in each
request and each example."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is asked for; None is found out."""

    name: str | None = None
    context: int | None = None
    max_rank: int | None = None
    quantization: str | None = None
    also_known_as: tuple[str, ...] = ()
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    allowed_template_kwargs: tuple[str, ...] = ()


def add(
    settings: Settings, device: Device, source: str, wishes: Wishes, say: Callable[[str], None]
) -> BaseModelEntry:
    """Add the base model of a folder or of a hub; nothing is added if it cannot be trained and served.

    Raises:
        BaseModelError: it cannot be prepared, trained or served, or a wish cannot be met.
        ConflictError: another base model or an alias has one of its names.
        StorageUnavailableError: the bucket, in which it is to be, cannot be reached now.
    """
    draft = _draft(source, wishes)
    database = Database(settings.sqlalchemy_url)
    try:
        with database.reader() as session:
            require_free_names(session, settings, draft)
        pull(draft, settings.base_model_dir(draft), say)
        folder = settings.base_model_dir(draft)
        _check_tools(folder, draft)
        if not linear_modules(settings, draft):
            raise BaseModelError(f"{folder} has no linear layers that an adapter can change")
        say(f"{draft.name}: {_self_test(folder, draft.quantization)}")
        entry = draft.model_copy(update={"context": _context(folder, draft, wishes, settings, device)})
        bases = StoredBases(settings, database, open_storage(settings))
        stored = bases.upload(entry, say) if settings.storage_bucket else None
        with acting_as(this_user()), database.writer() as session:
            add_base_model(session, settings, entry)
            if stored:
                bases.record(session, stored)
    finally:
        database.dispose()
    return entry


def _draft(source: str, wishes: Wishes) -> BaseModelEntry:
    """Return the entry as far as it is known before the model is there."""
    folder = Path(source).expanduser()
    known = None if folder.is_dir() else find_known(source)
    if folder.is_dir():
        source = str(folder.resolve())
    elif known is None and not HUB_ID.fullmatch(source):
        raise BaseModelError(
            f"{source!r} is neither a folder nor a hub id (OWNER/NAME), nor in `toque models list "
            "--available`"
        )
    begun = (
        known.entry.model_dump()
        if known
        else {
            "name": _name_of(source),
            "source": source,
            "context": _CONTEXT,
        }
    )
    _check_parser("tool", wishes.tool_parser, TOOL_PARSERS)
    _check_parser("reasoning", wishes.reasoning_parser, REASONING_PARSERS)
    wished = {name: value for name, value in asdict(wishes).items() if value}
    try:
        return BaseModelEntry.model_validate(begun | wished)
    except ValidationError as error:
        first = error.errors()[0]
        raise BaseModelError(f"--{first['loc'][0]}: {first['msg']}".replace("_", "-")) from error


def _check_parser(kind: str, name: str | None, known: frozenset[str]) -> None:
    if name is not None and name not in known:
        raise BaseModelError(
            f"--{kind}-parser: vLLM has no {kind} parser {name!r}; it has: {', '.join(sorted(known))}"
        )


def _check_tools(folder: Path, draft: BaseModelEntry) -> None:
    """Check that a base model with a tool parser is shown tools."""
    source = read_source(folder, template_options(draft))
    if draft.tool_parser and source is not None and "tools" not in source:
        raise BaseModelError(
            f"--tool-parser: the chat template of {draft.name} does not show tools to the model; give one "
            "that does with --chat-template, or leave the parser out"
        )


def _name_of(source: str) -> str:
    """Return a name in the form that names have here, from a folder's or a hub's."""
    return re.sub(r"[^a-z0-9._-]+", "-", Path(source).name.lower()).strip("._-")[:64] or "base"


def _self_test(folder: Path, quantization: str | None) -> str:
    """Run the trainer's self-test on the real weights, and return what it found in a sentence."""
    command = [sys.executable, "-P", "-m", "workers.training.self_test", str(folder), quantization or "none"]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment(), check=False)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it did not say why"])[-1]
        raise BaseModelError(f"{folder} cannot be trained: {said}")
    found: dict[str, Any] = json.loads(done.stdout)
    if found["layout"] is None:
        raise BaseModelError(f"{folder} cannot be trained: {found['reason']}")
    return (
        f"trained in {found['layout']} batches, because {found['reason']}; in the self-test, they differ "
        f"from single sequences by at most {found['largest_difference']:.2g} nats"
    )


def _context(folder: Path, draft: BaseModelEntry, wishes: Wishes, settings: Settings, device: Device) -> int:
    """Return the context in tokens: what is wanted, or what the model and the engine's memory allow."""
    config = read_config(folder)
    positions = _longest(config)
    if wishes.context is not None:
        if not 64 <= wishes.context <= positions:
            raise BaseModelError(f"--context must be from 64 to {positions:,}, which the model was made for")
        return wishes.context
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    gpu_bytes = device.memory_bytes if device.kind == "cuda" else None
    room = cache_bytes(settings, gpu_bytes, weights) // cache_bytes_per_token(config)
    if room < 64:
        raise BaseModelError(
            f"the engine has no memory for it: its weights are {weights / 1e9:,.1f} GB, and {device.name} "
            f"has {device.memory_bytes / 1e9:,.1f} GB. To add it for another machine, give --context"
        )
    return min(positions, draft.context, room - room % 64)


def _longest(config: dict[str, Any]) -> int:
    """Return how many positions the model can be trained and served with alike.

    With LongRoPE (https://arxiv.org/abs/2402.13753), a model rotates otherwise beyond its original length:
    vLLM for all requests once the context is longer, transformers for those batches that are.
    """
    positions = config.get("max_position_embeddings") or config.get("n_positions") or _CONTEXT
    rope: dict[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if "longrope" not in (rope.get("rope_type"), rope.get("type")):
        return positions
    original = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    return min(positions, original or positions)
