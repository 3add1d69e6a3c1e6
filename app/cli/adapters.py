"""`toque adapters`: imports, exports, checks and merges LoRA adapters."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import uuid
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from app.cli.client import DEFAULT_BASE_URL, BaseUrl, connect, not_empty
from app.cli.output import AsJson, fail, print_fields, print_json
from app.cli.parent_death import bound_to_parent
from app.core.child_environment import DATABASE, child_environment

if TYPE_CHECKING:
    from openai import OpenAI

app = typer.Typer(no_args_is_help=True, help="Import, export, check and merge LoRA adapters.")

FILES = ("adapter_config.json", "adapter_model.safetensors")

Folder = Annotated[Path, typer.Argument(exists=True, file_okay=False, show_default=False)]
Name = Annotated[str, typer.Argument(show_default=False, callback=not_empty)]


@app.command("import")
def import_adapter(
    folder: Folder,
    base_model: Annotated[
        str,
        typer.Option(show_default=False, help="Base model that it was trained on: see `toque models list`."),
    ],
    suffix: Annotated[
        str | None, typer.Option(show_default=False, help="Part of the new model's name.")
    ] = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    as_json: AsJson = False,
) -> None:
    """Have the service check and serve an adapter that PEFT saved.

    Example: toque adapters import my-adapter --base-model smollm2-135m-instruct
    """
    from openai.types import Model  # noqa: PLC0415 - takes a second to import

    for name in FILES:
        if not (folder / name).is_file():
            fail(f"{folder} has no {name}; PEFT's save_pretrained writes one", 2)
    body = {"base_model": base_model} | ({"suffix": suffix} if suffix is not None else {})
    # The client sends a request again when the connection drops; the key makes sure of one adapter.
    headers = {"Content-Type": "multipart/form-data", "Idempotency-Key": str(uuid.uuid4())}
    with connect(base_url) as client, ExitStack() as opened:
        files = [(name, (name, opened.enter_context((folder / name).open("rb")))) for name in FILES]
        model = client.post("/adapters", cast_to=Model, body=body, files=files, options={"headers": headers})
    if as_json:
        print_json(model)
    else:
        print_fields({"model": model.id, "base model": base_model})


@app.command("export")
def export_adapter(
    name: Name,
    into: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", show_default=False, help="Name of the new folder; by default the model's name."
        ),
    ] = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
) -> None:
    """Write an adapter's two files to a folder, for PEFT and everything that reads its format.

    Example: toque adapters export ft:smollm2-135m-instruct:default::m0x1 --into my-adapter
    """
    target = (into or Path(name.replace(":", "-"))).absolute()
    if target.exists():
        fail(f"{target} exists already; name another folder with --into", 2)
    with connect(base_url) as client:
        _download(client, name, target)
    print_fields({"model": name, "folder": target})


@app.command()
def check(name: Name, base_url: BaseUrl = DEFAULT_BASE_URL, as_json: AsJson = False) -> None:
    """Have the service check an adapter again, and lift its quarantine, or quarantine it, accordingly.

    Example: toque adapters check ft:smollm2-135m-instruct:default::m0x1
    """
    from openai.types import Model  # noqa: PLC0415 - as above

    with connect(base_url) as client:
        model = client.post(f"/adapters/{quote(name, safe='')}/check", cast_to=Model)
    reason: str | None = (model.model_extra or {}).get("quarantine_reason")
    if as_json:
        print_json(model)
    else:
        print_fields({"model": model.id, "state": "quarantined" if reason else "served", "reason": reason})
    if reason:
        raise typer.Exit(1)


@app.command()
def merge(
    adapter: Annotated[str, typer.Argument(metavar="NAME|FOLDER", show_default=False, callback=not_empty)],
    into: Annotated[
        Path, typer.Option(metavar="DIR", show_default=False, help="A new folder for the model.")
    ],
    base_model: Annotated[
        str | None, typer.Option(show_default=False, help="Base model, if the folder does not name it.")
    ] = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
) -> None:
    """Merge an adapter into its base model, as a model in bfloat16 that needs no adapter. Needs torch.

    Example: toque adapters merge ft:smollm2-135m-instruct:default::m0x1 --into my-model
    """
    if Path(adapter).is_dir():
        raise typer.Exit(_merge(Path(adapter), base_model, into))
    with tempfile.TemporaryDirectory(prefix="toque-") as scratch:
        folder = Path(scratch) / "adapter"
        with connect(base_url) as client:
            _download(client, adapter, folder)
        raise typer.Exit(_merge(folder, base_model, into))


def _merge(folder: Path, base_model: str | None, into: Path) -> int:
    """Runs the merge in a child process, since it needs torch; returns the exit code."""
    command = [sys.executable, "-P", "-m", "workers.merged_model", str(folder), "--into", str(into)]
    command += ["--base-model", base_model] if base_model else []
    return subprocess.call(bound_to_parent(command), env=child_environment(DATABASE, has_settings=True))


def _download(client: OpenAI, name: str, target: Path) -> None:
    """Downloads an adapter into a new folder, completely or not at all."""
    # This is how the client streams a response without reading it into memory first.
    from openai._response import StreamedBinaryAPIResponse  # noqa: PLC0415 - as above

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        tar, folder = Path(scratch) / "tar", Path(scratch) / "adapter"
        response = client.get(
            f"/adapters/{quote(name, safe='')}/download",
            cast_to=StreamedBinaryAPIResponse,
            options={"headers": {"X-Stainless-Raw-Response": "stream"}},
        )
        with closing(response):
            response.stream_to_file(tar)
        folder.mkdir()
        _unpack(tar, folder)
        folder.rename(target)


def _unpack(tar: Path, folder: Path) -> None:
    """Extracts the two files, and nothing else."""
    try:
        with tarfile.open(tar) as archive:
            for name in FILES:
                content = archive.extractfile(name)
                assert content is not None, "the service sends plain files"
                with content, (folder / name).open("xb") as file:
                    shutil.copyfileobj(content, file)
    except (KeyError, tarfile.TarError) as error:
        fail(f"what the service sent is no adapter: {error}")
