"""`toque batches`: files of requests that are answered in the background."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.client import DEFAULT_BASE_URL, BaseUrl, connect, not_empty
from app.cli.files import upload_file
from app.cli.output import AsJson, fail, moment, print_fields, print_json, print_table

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import Batch

app = typer.Typer(no_args_is_help=True, help="Files of requests that are answered in the background.")

BatchId = Annotated[str, typer.Argument(metavar="BATCH_ID", show_default=False, callback=not_empty)]
_ENDED = ("failed", "completed", "expired", "cancelled")
_POLL_SECONDS = 1.0


@app.command()
def create(
    path: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, show_default=False, help="Requests as JSONL.")
    ],
    endpoint: Annotated[str, typer.Option(help="The route that all requests are for.")] = (
        "/v1/chat/completions"
    ),
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the batch has ended.")] = False,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    as_json: AsJson = False,
) -> None:
    """Upload a file of requests and queue it. With --wait, the exit code is 1 unless it is completed.

    Example: toque batches create requests.jsonl --wait
    """
    with connect(base_url) as client:
        file = upload_file(client, path, "batch")
        batch = client.batches.create(
            input_file_id=file.id,
            endpoint=endpoint,  # pyright: ignore[reportArgumentType] - checked by the service
            completion_window="24h",
        )
        if wait:
            batch = _await_end(client, batch)
    _print_batch(batch, as_json)
    if wait and batch.status != "completed":
        fail(f"The batch is {batch.status}.")


@app.command("list")
def list_batches(
    limit: Annotated[int, typer.Option(min=1, max=100, help="Newest batches to show.")] = 20,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    as_json: AsJson = False,
) -> None:
    """List batches, newest first.

    Example: toque batches list
    """
    with connect(base_url) as client:
        page = client.batches.list(limit=limit)
    if as_json:
        print_json(page.data)
    else:
        rows = [
            (batch.id, batch.status, _progress(batch), batch.model or "", moment(batch.created_at))
            for batch in page.data
        ]
        print_table(("ID", "STATUS", "ANSWERED", "MODEL", "CREATED"), rows)


@app.command()
def get(batch_id: BatchId, base_url: BaseUrl = DEFAULT_BASE_URL, as_json: AsJson = False) -> None:
    """Show one batch, with what is wrong with its file.

    Example: toque batches get batch_abc123
    """
    with connect(base_url) as client:
        batch = client.batches.retrieve(batch_id)
    _print_batch(batch, as_json)


@app.command()
def cancel(batch_id: BatchId, base_url: BaseUrl = DEFAULT_BASE_URL, as_json: AsJson = False) -> None:
    """End a batch; its answers so far are published.

    Example: toque batches cancel batch_abc123
    """
    with connect(base_url) as client:
        batch = client.batches.cancel(batch_id)
    _print_batch(batch, as_json)


def _await_end(client: OpenAI, batch: Batch) -> Batch:
    while batch.status not in _ENDED:
        time.sleep(_POLL_SECONDS)
        batch = client.batches.retrieve(batch.id)
    return batch


def _progress(batch: Batch) -> str:
    counts = batch.request_counts
    return f"{counts.completed + counts.failed:,} of {counts.total:,}" if counts else ""


def _print_batch(batch: Batch, as_json: bool) -> None:
    if as_json:
        print_json(batch)
        return
    print_fields(
        {
            "id": batch.id,
            "status": batch.status,
            "model": batch.model,
            "answered": _progress(batch),
            "failed": batch.request_counts.failed if batch.request_counts else None,
            "output file": batch.output_file_id,
            "error file": batch.error_file_id,
            "created": moment(batch.created_at),
            "expires": moment(batch.expires_at),
        }
    )
    errors = batch.errors.data if batch.errors else None
    if errors:
        print_table(("LINE", "WHERE", "WHAT"), [(each.line, each.param, each.message) for each in errors])
