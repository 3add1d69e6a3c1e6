"""The files that a base model consists of: weights, configuration, tokenizer and licence."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from app.core.settings import BaseModelEntry

SOURCE = ".source"
"""The file in a prepared folder that says where the model is from."""
_WANTED = (
    *("*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt"),
    *("*LICENSE*", "*LICENCE*", "*NOTICE*"),
)
"""There are no pickles and no code among them, and none is ever loaded."""
_UNWANTED = ("*/*", "consolidated*", "params.json", ".*")
"""Other formats of the same weights: in sub-folders, or as Mistral's own code reads them."""


def is_wanted(name: str) -> bool:
    """Return whether a file of a repository or a folder belongs to the base model."""
    return _matches(name, _WANTED) and not _matches(name, _UNWANTED)


def wanted_files(folder: Path) -> list[Path]:
    """Return the files of a prepared folder that belong to the base model, by name."""
    return sorted(path for path in folder.iterdir() if is_wanted(path.name) and path.is_file())


def unready(folder: Path) -> str | None:
    """Return why the folder is not a prepared base model, or None if it is one."""
    if not folder.is_dir():
        return f"{folder} does not exist"
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            return f"{folder} has no {name}"
    if not any(folder.glob("*.safetensors")):
        return f"{folder} has no *.safetensors"
    return None


def misplaced(folder: Path, entry: BaseModelEntry) -> str | None:
    """Return why a prepared folder is not the entry's base model, as far as it says, or None if it is."""
    mark = folder / SOURCE
    if folder == Path(entry.source) or not mark.is_file():
        return None
    source = mark.read_text("utf-8")
    if source == entry.source:
        return None
    return (
        f"{folder} is from {source}, and {entry.name} is to be from {entry.source}: give it another name, or "
        "remove the folder, and start workers and engines again"
    )


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
