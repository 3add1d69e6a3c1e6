"""`toque backup` and `toque restore`: the database and the storage, copied while the service runs."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.output import AsJson, fail, moment, print_fields, print_json, stderr
from app.cli.settings import read_settings

if TYPE_CHECKING:
    from app.backup.manifest import Manifest

Folder = Annotated[Path, typer.Argument(file_okay=False, show_default=False, help="Folder of the backup.")]


def backup(
    folder: Folder,
    verify: Annotated[
        bool, typer.Option("--verify", help="Make no backup, but read the one that is there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Back up the database and the storage, while the service runs. Into an earlier backup, copy what is new.

    Example: toque backup /backups/toque
    """
    from app.backup.creation import create_backup  # noqa: PLC0415 - SQLAlchemy is slow to import
    from app.backup.errors import BackupError  # noqa: PLC0415 - as above
    from app.backup.manifest import find_damage, read_manifest  # noqa: PLC0415 - as above

    os.umask(0o077)
    with _one_line_errors():
        if not verify:
            manifest = create_backup(read_settings(), folder)
        else:
            manifest = read_manifest(folder)
            if damage := find_damage(folder.absolute(), manifest):
                raise BackupError(f"the backup is damaged: {'; '.join(damage)}")
    _print(manifest, as_json)


def restore(folder: Folder, as_json: AsJson = False) -> None:
    """Restore a backup into a database and a storage that are empty. Start the service afterwards.

    Example: TOQUE_DATA_DIR=/data toque restore /backups/toque
    """
    from app.backup.restoration import restore_backup  # noqa: PLC0415 - as above
    from app.cli.permissions import restrict_permissions  # noqa: PLC0415 - as above

    settings = read_settings()
    restrict_permissions(settings)
    with _one_line_errors():
        manifest = restore_backup(settings, folder)
    _print(manifest, as_json)


@contextmanager
def _one_line_errors() -> Generator[None]:
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 - as above

    from app.backup.errors import BackupError  # noqa: PLC0415 - as above
    from app.core.errors import ToqueError  # noqa: PLC0415 - as above

    try:
        yield
    except (BackupError, OSError) as error:
        fail(str(error))
    except ToqueError as error:
        fail(error.body.message)
    except (SQLAlchemyError, sqlite3.Error) as error:
        fail(f"the database cannot be used: {getattr(error, 'orig', None) or error}")


def _print(manifest: Manifest, as_json: bool) -> None:
    size = manifest.database.bytes + sum(content.bytes for content in manifest.files.values())
    if as_json:
        print_json(manifest.model_dump(exclude={"files"}) | {"files": len(manifest.files), "bytes": size})
    else:
        print_fields(
            {
                "made": moment(manifest.created_at),
                "version": manifest.version,
                "schema": manifest.revision,
                "database": manifest.dialect,
                "files": len(manifest.files),
                "bytes": f"{size:,}",
            }
        )
    for key in manifest.missing:
        stderr.print(f"Warning: the database names {key}, which the storage did not have.")
