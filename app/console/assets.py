"""The pages' own files: served under the hash of their content, so that browsers may keep them for ever."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response

from app.core.errors import NotFoundError

_FOLDER = Path(__file__).parent / "static"
_KINDS = {".css", ".js", ".svg"}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class _Asset:
    digest: str
    media_type: str
    content: bytes
    compressed: bytes
    """The content, by gzip."""


@cache
def _assets() -> dict[str, _Asset]:
    return {
        path.relative_to(_FOLDER).as_posix(): _read(path)
        for path in sorted(_FOLDER.rglob("*"))
        if path.suffix in _KINDS
    }


def _read(path: Path) -> _Asset:
    content = path.read_bytes()
    media_type, _ = mimetypes.guess_type(path.name)
    return _Asset(
        hashlib.sha256(content).hexdigest()[:16],
        media_type or "application/octet-stream",
        content,
        gzip.compress(content, mtime=0),
    )


def asset_url(name: str) -> str:
    """Return the address of a file in `static/`.

    Raises:
        KeyError: there is no such file.
    """
    return f"/console/static/{_assets()[name].digest}/{name}"


@router.get("/console/static/{digest}/{name:path}")
async def read_asset(digest: str, name: str, request: Request) -> Response:
    """Serve a file, compressed if the browser takes that."""
    asset = _assets().get(name)
    if asset is None or asset.digest != digest:
        raise NotFoundError(f"There is no file {name[:255]!r}; reload the page.", code="file_not_found")
    headers = {"cache-control": "public, max-age=31536000, immutable", "vary": "accept-encoding"}
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(asset.content, headers=headers, media_type=asset.media_type)
    headers["content-encoding"] = "gzip"
    return Response(asset.compressed, headers=headers, media_type=asset.media_type)
