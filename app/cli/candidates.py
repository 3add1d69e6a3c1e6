"""What `toque compare` is told, as the API takes it: candidates, graders, files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from app.cli.files import upload_file
from app.cli.output import stderr

if TYPE_CHECKING:
    from openai import OpenAI

_PURPOSE = "evals"


class Uploads:
    """The files of one comparison. What the service already has is not uploaded again."""

    def __init__(self, client: OpenAI) -> None:
        self._client = client
        self._known: dict[str, str] | None = None

    def file_id(self, file: str, option: str) -> str:
        """Return the id of a file. A path is uploaded first, unless the service has its content."""
        path = Path(file)
        if not path.is_file():
            if file.startswith("file-"):
                return file
            raise typer.BadParameter(
                f"'{file}' is neither a file here nor the id of an uploaded one (file-…)", param_hint=option
            )
        if self._known is None:
            self._known = {
                str(getattr(each, "sha256", "")): each.id
                for each in self._client.files.list(purpose=_PURPOSE)
            }
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if digest not in self._known:
            self._known[digest] = upload_file(self._client, path, _PURPOSE).id
            stderr.print(f"Uploaded {path} as {self._known[digest]}")
        return self._known[digest]


def parse_candidate(text: str, uploads: Uploads) -> dict[str, Any]:
    """Return the candidate that one `--candidate` describes.

    Raises:
        typer.BadParameter: it is none.
    """
    if text.lstrip().startswith("{"):
        return _document(text, "--candidate")
    if text == "base":
        return {"type": "base"}
    kind, _, value = text.partition("=")
    if kind == "prompt":
        try:
            return {"type": "prompt", "system": Path(value).read_text("utf-8").strip()}
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"cannot read '{value}': {error}", param_hint="--candidate") from None
    if kind == "few-shot":
        count, _, rest = value.partition(":")
        is_nearest, file = rest.startswith("nearest:"), rest.removeprefix("nearest:")
        if not count.isdecimal() or not file:
            raise typer.BadParameter(f"'{text}' is not few-shot=COUNT:FILE", param_hint="--candidate")
        selection = "nearest" if is_nearest else "random"
        file_id = uploads.file_id(file, "--candidate")
        return {"type": "few_shot", "examples": int(count), "file": file_id, "selection": selection}
    if kind == "checkpoints":
        return {"type": "checkpoints", "job": value}
    return {"type": "model", "model": text}


def parse_grader(text: str, option: str) -> str | dict[str, Any]:
    """Return a grader's name or its JSON document.

    Raises:
        typer.BadParameter: it is no JSON, though it looks like it.
    """
    return _document(text, option) if text.lstrip().startswith("{") else text


def _document(text: str, option: str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"'{text}' is not JSON: {error}", param_hint=option) from None
