"""Downloads a base model from a hub, such as the one that `HF_ENDPOINT` names.

A download that breaks off goes on where it was, also in another process, and every file is compared with the
hash that the hub has of it. `huggingface_hub` (2.4) does neither when it downloads a whole repository: it
compares sizes only, and begins a file anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.file_download import http_get  # pyright: ignore[reportUnknownVariableType]
from huggingface_hub.utils import build_hf_headers  # pyright: ignore[reportUnknownVariableType]

from app.base_models.files import is_wanted
from workers.base_models.errors import BaseModelError, first_line, is_disk_full

_ATTEMPTS = 2
"""How often a file is downloaded whose hash is wrong."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository, as the hub describes it."""

    name: str
    size: int
    sha256: str | None
    """The hash of a large file's content."""
    blob_id: str
    """Git's hash of a small file, which is the SHA-1 of a header and the content."""

    @property
    def is_weights(self) -> bool:
        """Whether the file holds weights; the others are small."""
        return self.name.endswith(".safetensors")


def download(
    repository: str, folder: Path, say: Callable[[str], None], accept: Callable[[Path], None]
) -> None:
    """Download the repository's model into `folder`, which may hold a part of it already.

    `accept` is called with the folder before the weights are downloaded, and may raise.

    Raises:
        BaseModelError: the hub does not have the model or does not give it, the download broke off, the files
            are damaged, or the disk has too little room.
        OSError: the disk is full, or cannot be written.
    """
    endpoint = os.environ.get("HF_ENDPOINT", ENDPOINT).rstrip("/")
    with _explained(repository, endpoint):
        info = HfApi(endpoint).model_info(repository, files_metadata=True)
        files = _wanted(cast(Sequence[Any], info.siblings or ()))
        if not any(file.is_weights for file in files):
            raise BaseModelError(f"{repository} has no *.safetensors: choose a repository that has")
        commit = str(info.sha)
        _start_over_if_changed(folder, commit)
        missing = [file for file in files if not (folder / file.name).is_file()]
        _require_room(folder, missing)
        for number, file in enumerate(sorted(missing, key=lambda file: file.is_weights), 1):
            if file.is_weights:
                accept(folder)
            say(f"{repository}: {file.name} ({file.size / 1e6:,.1f} MB; {number} of {len(missing)})")
            _fetch(hf_hub_url(repository, file.name, revision=commit, endpoint=endpoint), file, folder)
    (folder / _COMMIT).unlink()


_COMMIT = ".commit"


def _wanted(siblings: Sequence[Any]) -> list[HubFile]:
    return [
        HubFile(each.rfilename, each.size, each.lfs.sha256 if each.lfs else None, each.blob_id)
        for each in siblings
        if is_wanted(each.rfilename)
    ]


def _start_over_if_changed(folder: Path, commit: str) -> None:
    """Delete what is there of another commit, since files of the two must not be mixed."""
    note = folder / _COMMIT
    if note.is_file() and note.read_text("ascii") == commit:
        return
    for path in folder.iterdir():
        path.unlink()
    note.write_text(commit, "ascii")


def _require_room(folder: Path, missing: Sequence[HubFile]) -> None:
    parts = [_part(folder, file) for file in missing]
    needed = sum(file.size for file in missing) - sum(part.stat().st_size for part in parts if part.is_file())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise BaseModelError(
            f"the download needs {needed / 1e9:,.1f} GB, and the disk with {folder.parent} has "
            f"{free / 1e9:,.1f} GB left: free some space, or set TOQUE_MODELS_DIR to a folder on another disk"
        )


def _fetch(url: str, file: HubFile, folder: Path) -> None:
    """Download one file, from where an earlier download of it broke off."""
    part = _part(folder, file)
    headers = build_hf_headers()
    for _ in range(_ATTEMPTS):
        with part.open("ab") as content:
            cast(Any, http_get)(
                url,
                content,
                resume_size=content.tell(),
                headers=headers,
                expected_size=file.size,
                displayed_filename=file.name,
            )
        if _is_intact(part, file):
            part.rename(folder / file.name)
            return
        part.unlink()
    raise BaseModelError(
        f"{file.name} arrived damaged {_ATTEMPTS} times: its hash is not the one that the hub has of it. "
        "Something between this machine and the hub changes files, such as a proxy; what is intact is kept"
    )


def _is_intact(part: Path, file: HubFile) -> bool:
    with part.open("rb") as content:
        if file.sha256 is not None:
            return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256
        blob = content.read()
    return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest() == file.blob_id  # noqa: S324 - git's


def _part(folder: Path, file: HubFile) -> Path:
    return folder / f"{file.name}.part"


@contextmanager
def _explained(repository: str, endpoint: str) -> Generator[None]:
    try:
        yield
    except GatedRepoError as error:
        raise BaseModelError(
            f"{repository} is gated: accept its terms at {endpoint}/{repository}, and set HF_TOKEN to a "
            "token of the account that did"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise BaseModelError(
            f"the hub at {endpoint} has no model {repository}, or only for those who may see it: check the "
            "id, or set HF_TOKEN"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise BaseModelError(
            f"the hub at {endpoint} answered with status {status}: {first_line(error)}"
        ) from error
    except (httpx2.HTTPError, OSError) as error:
        if is_disk_full(error) or isinstance(error, PermissionError):
            raise
        raise BaseModelError(
            f"{repository} could not be downloaded from {endpoint}: {first_line(error)}\n"
            "What has arrived is kept: run the command again to go on. If the hub cannot be reached from "
            "this machine, set HF_ENDPOINT to a mirror of it, or add a folder: `toque models add FOLDER`"
        ) from error
