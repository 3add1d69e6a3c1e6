"""Loads published adapters into vLLM on their first request: a plugin in every process that vLLM starts.

The database says which adapters there are, so any engine serves any of them after any restart, with
nobody's help. vLLM asks `resolve_lora` once for each name, one caller at a time, then keeps the answer.
An adapter that must not be loaded is quarantined: its row says why, and gateways ask no engine again.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import SQLAlchemyError

from app.core.database import Database
from app.core.settings import BaseModelEntry, Settings
from app.models.adapters import service
from app.models.adapters.validation import WEIGHTS, AdapterError, Shapes, module_shapes
from app.storage import open_storage
from workers.processes import die_with_parent

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

log = logging.getLogger("toque.lora_resolver")


def register() -> None:
    """The entry point `toque_lora_resolver` of `vllm.general_plugins`."""
    base_model = os.environ.get("TOQUE_ENGINE")
    if base_model is None:
        return  # a vLLM that is not ours
    # vLLM's model processes outlive an API server that is killed; here is the one place to prevent it.
    die_with_parent()
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry  # noqa: PLC0415

    published = PublishedAdapters(base_model)

    class ToqueResolver(LoRAResolver):
        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            del base_model_name  # its folder, which says nothing
            return await published.resolve(lora_name)

    LoRAResolverRegistry.register_resolver("toque", ToqueResolver())
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager  # noqa: PLC0415

    watch_loader(LRUCacheWorkerLoRAManager, published)


def watch_loader(loader: type[Any], published: PublishedAdapters) -> None:
    """Has what vLLM's own loader refuses quarantined.

    vLLM tells nobody why: its API server logs the reason, and answers that the adapter "could not be loaded".
    """
    add: Callable[[Any, LoRARequest], bool] = loader.add_adapter

    def add_adapter(self: Any, lora_request: LoRARequest) -> bool:
        try:
            return add(self, lora_request)
        except Exception as error:
            if _is_verdict(error):
                self.remove_adapter(lora_request.lora_int_id)  # it may have come half the way
                published.quarantine(lora_request.lora_name, f"vLLM cannot load it: {error}")
            raise

    loader.add_adapter = add_adapter


def _is_verdict(error: Exception) -> bool:
    """Whether it is about the adapter, and not about a storage, a memory or a device in trouble."""
    from torch import AcceleratorError, OutOfMemoryError  # noqa: PLC0415
    from vllm.exceptions import LoRAAdapterNotFoundError  # noqa: PLC0415

    passing = (OSError, MemoryError, OutOfMemoryError, AcceleratorError, LoRAAdapterNotFoundError)
    return not isinstance(error, passing)


class PublishedAdapters:
    """The adapters of one base model; connects to the database when first asked."""

    def __init__(self, base_model: str) -> None:
        self._base_model = base_model

    async def resolve(self, name: str) -> LoRARequest | None:
        """The adapter of that name, or None if none is published, or it cannot be read now.

        Raises:
            AdapterError: it would harm the engine; vLLM answers 400 with the message.
        """
        from vllm.lora.request import LoRARequest  # noqa: PLC0415

        folder = await asyncio.to_thread(self.folder_of, name)
        # vLLM sets an id of its own.
        return LoRARequest(lora_name=name, lora_int_id=1, lora_path=str(folder)) if folder else None

    def folder_of(self, name: str) -> Path | None:
        """The checked folder of the adapter of that name, or None if there is none to be had now.

        Raises:
            AdapterError: it must not be loaded.
        """
        with self._database.reader() as session:
            adapter = service.find_servable(session, self._base_model, name)
        if adapter is None:
            return None
        reason = adapter.quarantine_reason
        if reason is None:
            try:
                storage = open_storage(self._settings)
                return service.check_files(storage, adapter.storage_key, self._shapes, self._entry.max_rank)
            except (
                OSError
            ) as error:  # a storage that is not mounted, say: it may be there on the next request
                log.warning("the files of %s cannot be read now: %s", name, error)
                return None
            except AdapterError as error:
                reason = error.message
                self.quarantine(name, reason)
        raise AdapterError(WEIGHTS, "quarantined", f"The model {name} cannot be served: {reason}")

    def quarantine(self, name: str, reason: str) -> None:
        """Has nobody ask for the adapter any more, if the database can be reached."""
        log.warning("%s is quarantined: %s", name, reason)
        try:
            with self._database.writer() as session:
                service.quarantine(session, name, reason)
        except SQLAlchemyError as error:  # then the next request has it checked, and refused, again
            log.warning("the quarantine of %s is not recorded: %s", name, error)

    @cached_property
    def _settings(self) -> Settings:
        return Settings()

    @cached_property
    def _entry(self) -> BaseModelEntry:
        entry = self._settings.base_model(self._base_model)
        assert entry is not None, "the engine that started this process found it"
        return entry

    @cached_property
    def _shapes(self) -> Shapes:
        return module_shapes(self._settings.base_model_dir(self._entry))

    @cached_property
    def _database(self) -> Database:
        return Database(self._settings.sqlalchemy_url)
