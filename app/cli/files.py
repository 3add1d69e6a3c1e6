"""`toque files`: uploads, lists, checks and downloads datasets and results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import open as open_with_progress

from app.cli.client import DEFAULT_BASE_URL, BaseUrl, connect, not_empty
from app.cli.datasets import convert, print_report, validate, validation
from app.cli.output import AsJson, fail, moment, print_fields, print_json, print_table, stderr, stdout
from app.cli.uploads import LARGE_BYTES, upload_in_parts

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import FileObject

app = typer.Typer(no_args_is_help=True, help="Upload, check and download datasets and results.")

FileId = Annotated[str, typer.Argument(metavar="FILE_ID", show_default=False, callback=not_empty)]
Dataset = Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, show_default=False)]


@app.command()
def upload(
    path: Dataset,
    purpose: Annotated[str, typer.Option()] = "fine-tune",
    wait: Annotated[
        bool, typer.Option(help="Wait until a dataset is checked, and show the findings.")
    ] = True,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    as_json: AsJson = False,
) -> None:
    """Upload a file; a dataset is checked line by line. The exit code is 1 if it has errors.

    A file over 64 MB is uploaded in parts; after an interruption, the same command sends the missing ones.

    Example: toque files upload training.jsonl
    """
    report: dict[str, Any] | None = None
    with connect(base_url) as client:
        file = upload_file(client, path, purpose)
        if wait and file.status == "uploaded":
            file = client.files.wait_for_processing(file.id, poll_interval=0.1, max_wait_seconds=24 * 3600)
            report = client.get(f"/files/{file.id}/validation", cast_to=dict[str, Any])
    _print_file(file, as_json)
    if report is not None and not as_json:
        stdout.print()
        print_report(report)
    if file.status == "error":
        fail(file.status_details or "The file cannot be trained on.")


app.command()(validate)
app.command()(validation)
app.command()(convert)


@app.command("list")
def list_files(
    purpose: Annotated[
        str | None, typer.Option(show_default=False, help="Only files with this purpose.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Newest files to show.")] = 20,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    as_json: AsJson = False,
) -> None:
    """List files, newest first.

    Example: toque files list --purpose fine-tune
    """
    with connect(base_url) as client:
        page = client.files.list(limit=limit, extra_query={"purpose": purpose} if purpose else None)
    if as_json:
        print_json(page.data)
    else:
        rows = [
            (file.id, file.filename, file.purpose, f"{file.bytes:,}", moment(file.created_at))
            for file in page.data
        ]
        print_table(("ID", "FILENAME", "PURPOSE", "BYTES", "CREATED"), rows)


@app.command()
def get(file_id: FileId, base_url: BaseUrl = DEFAULT_BASE_URL, as_json: AsJson = False) -> None:
    """Show one file.

    Example: toque files get file-abc123
    """
    with connect(base_url) as client:
        file = client.files.retrieve(file_id)
    _print_file(file, as_json)


@app.command()
def delete(file_id: FileId, base_url: BaseUrl = DEFAULT_BASE_URL, as_json: AsJson = False) -> None:
    """Delete a file; jobs that were created with it go on.

    Example: toque files delete file-abc123
    """
    with connect(base_url) as client:
        deleted = client.files.delete(file_id)
    if as_json:
        print_json(deleted)
    else:
        print_fields({"deleted": deleted.id})


@app.command()
def download(
    file_id: FileId,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", dir_okay=False, show_default=False, help="File to write, instead of stdout."
        ),
    ] = None,
    base_url: BaseUrl = DEFAULT_BASE_URL,
) -> None:
    """Write a file's bytes to stdout or to a file.

    Example: toque files download file-abc123 -o results.csv
    """
    with connect(base_url) as client, client.files.with_streaming_response.content(file_id) as response:
        if output is None:
            for chunk in response.iter_bytes():
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        else:
            # Written under another name first, so that the file is complete as soon as it exists.
            partial = output.with_name(output.name + ".part")
            response.stream_to_file(partial)
            partial.replace(output)


def upload_file(client: OpenAI, path: Path, purpose: str) -> FileObject:
    """Uploads a file, in parts if it is large, with a progress bar on a terminal."""
    if path.stat().st_size > LARGE_BYTES:
        return upload_in_parts(client, path, purpose)
    with open_with_progress(
        path,
        "rb",
        description=f"Uploading {path.name}",
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
    ) as content:
        return client.files.create(file=(path.name, content), purpose=purpose)  # pyright: ignore[reportArgumentType] - checked by the service


def _print_file(file: FileObject, as_json: bool) -> None:
    if as_json:
        print_json(file)
        return
    print_fields(
        {
            "id": file.id,
            "filename": file.filename,
            "purpose": file.purpose,
            "bytes": f"{file.bytes:,}",
            "status": file.status,
            "created": moment(file.created_at),
        }
    )
