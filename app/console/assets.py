"""The pages' own files: served under the hash of their content, so that browsers may keep them for ever."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import zstandard
from fastapi import APIRouter, Request, Response

from app.core.errors import NotFoundError

_FOLDER = Path(__file__).parent / "static"
_KINDS = {".css", ".js", ".svg"}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class _Asset:
    digest: str
    media_type: str
    encodings: dict[str, bytes]
    """The content by its encoding, the smallest first."""


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
        {
            "zstd": zstandard.compress(content, 19),
            "gzip": gzip.compress(content, 9, mtime=0),
            "identity": content,
        },
    )


def asset_url(name: str) -> str:
    """Return the address of a file in `static/`.

    Raises:
        KeyError: there is no such file.
    """
    return f"/console/static/{_assets()[name].digest}/{name}"


@router.get("/console/static/{digest}/{name:path}")
async def read_asset(digest: str, name: str, request: Request) -> Response:
    """Serve a file, in an encoding that the browser takes."""
    asset = _assets().get(name)
    if asset is None or asset.digest != digest:
        raise NotFoundError(f"There is no file {name[:255]!r}; reload the page.", code="file_not_found")
    taken = {each.partition(";")[0].strip() for each in request.headers.get("accept-encoding", "").split(",")}
    encoding = next(each for each in asset.encodings if each in {*taken, "identity"})
    headers = {"cache-control": "public, max-age=31536000, immutable", "vary": "accept-encoding"}
    if encoding != "identity":
        headers["content-encoding"] = encoding
    return Response(asset.encodings[encoding], headers=headers, media_type=asset.media_type)
