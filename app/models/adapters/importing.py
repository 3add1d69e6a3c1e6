"""Imports adapters that were trained elsewhere."""

from __future__ import annotations

from functools import partial

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.context import Context
from app.core.database import Database, new_id
from app.core.errors import InvalidRequestError, NotFoundError
from app.core.idempotency import IdempotentRequest
from app.models.adapters.base_shapes import known_shapes
from app.models.adapters.models import Adapter
from app.models.adapters.schemas import ImportAdapter
from app.models.adapters.service import served_name
from app.models.adapters.validation import CONFIG, WEIGHTS, AdapterError, check_adapter
from app.models.catalogue import Catalogue
from app.quotas.stored_bytes import require_bytes
from app.storage.incoming import IncomingFolder


def import_adapter(
    database: Database,
    context: Context,
    creating: IdempotentRequest,
    incoming: IncomingFolder,
    request: ImportAdapter,
) -> Adapter:
    """Publish an adapter that was trained elsewhere: its weights as they are, its config written anew.

    Where the base model is not on this machine, an engine compares the two before it loads the adapter.

    Raises:
        NotFoundError: the catalogue has no such base model, or the idempotency key stands for an adapter
            that was deleted.
        InvalidRequestError: the adapter cannot be served; nothing is kept.
        QuotaExceededError: the project stores too much.
    """
    with database.reader() as session:
        base = Catalogue.read(session, context.settings).get(request.base_model, param="base_model")
    given = [incoming.file_sha256(name) for name in (CONFIG, WEIGHTS)]
    try:
        lora = check_adapter(incoming.finish(), known_shapes(context.settings, base), base.max_rank)
    except AdapterError as error:
        raise InvalidRequestError(
            f"The adapter cannot be served: {error}.", code=error.code, param=error.file
        ) from error
    incoming.file(CONFIG).write(lora.config(base.name))
    with database.writer() as session:
        return creating.once(
            session,
            "adapter",
            [given, request.model_dump()],
            find=partial(_find_imported, session, context.project_id),
            create=partial(_keep_imported, session, context, incoming, base.name, request.suffix),
        )


def _keep_imported(
    session: Session, context: Context, incoming: IncomingFolder, base: str, suffix: str | None
) -> Adapter:
    Catalogue.read_to_rely_on(session, context.settings).get(base)  # it may have been removed meanwhile
    size = sum(path.stat().st_size for path in incoming.finish().iterdir())
    require_bytes(session, context.project_id, size, "adapter_model.safetensors")
    adapter_id = new_id("")
    storage_key = f"adapters/{adapter_id}"
    context.storage.publish_folder(incoming.complete(), storage_key)
    plain_suffix = suffix.replace(" ", "-") if suffix else None
    adapter = Adapter(
        name=served_name(session, context.project_id, base, plain_suffix, adapter_id),
        project_id=context.project_id,
        base_model=base,
        storage_key=storage_key,
        bytes=size,
    )
    session.add(adapter)
    session.flush()
    return adapter


def _find_imported(session: Session, project_id: str, adapter_id: str) -> Adapter:
    query = select(Adapter).where(
        Adapter.project_id == project_id,
        Adapter.storage_key == f"adapters/{adapter_id}",
        Adapter.deleted_at.is_(None),
    )
    adapter = session.scalar(query)
    if adapter is None:
        raise NotFoundError("The adapter that this Idempotency-Key stands for was deleted.")
    return adapter
