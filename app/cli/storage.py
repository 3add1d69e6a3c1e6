"""`toque storage`: copies the files of a deployment from one storage to another."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.output import AsJson, fail, print_fields, print_json
from app.cli.settings import read_settings

app = typer.Typer(no_args_is_help=True, help="Copy the storage.")
_URL = "`file:///folder`, or a bucket as in TOQUE_STORAGE_URL."


@app.callback()
def storage() -> None:
    """Copy the storage."""


@app.command()
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", show_default=False, help=_URL)],
    target: Annotated[str, typer.Argument(metavar="TO", show_default=False, help=_URL)],
    as_json: AsJson = False,
) -> None:
    """Copy all files into another storage, to move a deployment. Run again, it copies the rest.

    Stop the service before the last run. Start it with the new TOQUE_STORAGE_URL, and run `toque db check`.

    Example: toque storage copy file:///shared/toque s3://bucket/toque
    """
    from pydantic import ValidationError  # noqa: PLC0415 - slow to import

    from app.core.errors import StorageFullError  # noqa: PLC0415 - as above
    from app.core.settings import Settings  # noqa: PLC0415 - as above
    from app.storage import open_storage  # noqa: PLC0415 - as above
    from app.storage.copying import ChangedError, copy_storage  # noqa: PLC0415 - as above

    read_settings()
    try:
        ends = [open_storage(Settings(storage_url=url)) for url in (source, target)]
        copied = list(copy_storage(*ends))
    except ValidationError:
        fail("FROM and TO begin with file:///, s3://, gs:// or az://", 2)
    except (ChangedError, StorageFullError, OSError, ValueError) as error:
        fail(f"{error}; what was copied stays, and is not copied again")
    new = [each for each in copied if each.is_new]
    shown = {"files": len(copied), "copied": len(new), "copied_bytes": sum(each.bytes for each in new)}
    if as_json:
        print_json(shown)
    else:
        print_fields(shown)
