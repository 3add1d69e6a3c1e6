"""A vLLM plugin (a LoRA resolver) that loads published adapters on their first request.

The database says which adapters exist, so that any engine serves any of them after any restart. vLLM calls
`resolve_lora` once for each name, one call at a time, and keeps the result. An adapter that must not be
loaded is quarantined: its row says why, and gateways do not ask for it again.

vLLM remembers the folder of an adapter for ever, and reads it again inside its step once it has dropped the
weights. A folder that is a copy of what is in a bucket is therefore put back in front of each request, if it
is gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from functools import cached_property
from http import HTTPStatus
from multiprocessing import current_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import SQLAlchemyError

from app.core.database import Database
from app.core.parent_death import die_with_parent
from app.core.settings import BaseModelEntry, Settings
from app.models.adapters import service
from app.models.adapters.files import check_adapter_files
from app.models.adapters.validation import WEIGHTS, AdapterError, Shapes, module_shapes
from app.models.catalogue import Catalogue
from app.storage import open_storage
from app.storage.base import Storage
from workers.inference.prefetch import Prefetch

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

log = logging.getLogger("toque.lora_resolver")


def register() -> None:
    """Registers the resolver; the entry point `toque_lora_resolver` of `vllm.general_plugins`."""
    base_model = os.environ.get("TOQUE_ENGINE")
    if base_model is None:
        return  # a vLLM that is not ours
    # vLLM's model processes would outlive an API server that is killed; only a plugin can prevent that.
    die_with_parent()
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry  # noqa: PLC0415

    published = PublishedAdapters(base_model)

    class ToqueResolver(LoRAResolver):
        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            del base_model_name  # the base model's folder, not its name
            if published.are_copied:
                from vllm.entrypoints.serve.engine.serving import BaseServing  # noqa: PLC0415

                watch_requests(BaseServing, published)
            return await published.resolve(lora_name)

    LoRAResolverRegistry.register_resolver("toque", ToqueResolver())
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager  # noqa: PLC0415

    watch_loader(LRUCacheWorkerLoRAManager, published)
    if current_process().name == "MainProcess":  # vLLM's server, which alone asks for adapters
        published.begin_to_prefetch()


def watch_requests(serving: type[Any], published: PublishedAdapters) -> None:
    """Has vLLM's server look after the copy of an adapter that it knows, before it takes a request for it.

    No adapter is known before the first one is resolved; until then this need not be called.
    """
    check: Callable[[Any, Any], Awaitable[Any]] = serving._check_model
    if check.__name__ == "check_model":
        return  # it watches already

    async def check_model(self: Any, request: Any) -> Any:
        if request.model in self.models.lora_requests:
            try:
                await published.keep(request.model)
            except OSError as error:
                log.warning("the files of %s cannot be read now: %s", request.model, error)
                message = f"The model {request.model} was found but could not be loaded."
                return self.create_error_response(message, "NotFoundError", HTTPStatus.NOT_FOUND)
        return await check(self, request)

    serving._check_model = check_model


def watch_loader(loader: type[Any], published: PublishedAdapters) -> None:
    """Quarantines every adapter that vLLM's own loader refuses, or would use in part.

    vLLM only logs the reason, and answers that the adapter "could not be loaded".
    """
    add: Callable[[Any, LoRARequest], bool] = loader.add_adapter

    def add_adapter(self: Any, lora_request: LoRARequest) -> bool:
        try:
            is_new = add(self, lora_request)
            _refuse_unused(self, lora_request.lora_int_id)
            return is_new
        except Exception as error:
            if _is_adapters_fault(error):
                self.remove_adapter(lora_request.lora_int_id)  # it may be loaded in part
                published.quarantine(lora_request.lora_name, f"vLLM cannot load it: {error}")
            raise

    loader.add_adapter = add_adapter


def _refuse_unused(loader: Any, adapter_id: int) -> None:
    """Raises ValueError if the adapter has weights for modules that vLLM ignores without a word.

    It ignores those whose last name it knows, but not the module, and those of modules that it cannot adapt.
    """
    manager = loader._adapter_manager
    if unused := manager.get_adapter(adapter_id).loras.keys() - manager.modules.keys():
        raise ValueError(f"vLLM would ignore its weights of {len(unused)} modules, such as {min(unused)}")


def _is_adapters_fault(error: Exception) -> bool:
    """Returns whether the adapter caused the error, rather than the storage, the memory or the device."""
    from torch import AcceleratorError, OutOfMemoryError  # noqa: PLC0415
    from vllm.exceptions import LoRAAdapterNotFoundError  # noqa: PLC0415

    transient = (OSError, MemoryError, OutOfMemoryError, AcceleratorError, LoRAAdapterNotFoundError)
    return not isinstance(error, transient)


class PublishedAdapters:
    """The published adapters of one base model. Connects to the database on first use."""

    def __init__(self, base_model: str) -> None:
        self._base_model = base_model
        self._keys: dict[str, str] = {}
        """The storage's key of each adapter that was resolved."""

    @property
    def are_copied(self) -> bool:
        """Whether adapters are read from copies, which may be evicted from the cache of this machine."""
        return self._storage.is_cached

    def begin_to_prefetch(self) -> None:
        """Fetch models as they are published, if they are in a bucket, as long as this process lives."""
        if self.are_copied:
            Prefetch(self._database, self._storage, self._base_model, self._settings.poll_seconds).start()

    async def keep(self, name: str) -> None:
        """Have the folder of a resolved adapter where it was, for long enough that vLLM can load it.

        Raises:
            OSError: it was evicted, and cannot be read now.
        """
        if key := self._keys.get(name):
            await asyncio.to_thread(self._fetch, key)

    def _fetch(self, key: str) -> None:
        with self._storage.local(key):
            pass

    async def resolve(self, name: str) -> LoRARequest | None:
        """Returns the adapter of that name, or None if none is published or its files cannot be read now.

        Raises:
            AdapterError: the adapter would harm the engine; vLLM answers 400 with the message.
        """
        from vllm.lora.request import LoRARequest  # noqa: PLC0415

        folder = await asyncio.to_thread(self.folder_of, name)
        # vLLM replaces the id with its own.
        return LoRARequest(lora_name=name, lora_int_id=1, lora_path=str(folder)) if folder else None

    def folder_of(self, name: str) -> Path | None:
        """Returns the checked folder of the adapter of that name, or None if none can be read now.

        Raises:
            AdapterError: the adapter must not be loaded.
        """
        with self._database.reader() as session:
            adapter = service.find_servable(session, self._base_model, name)
        if adapter is None:
            return None
        reason = adapter.quarantine_reason
        if reason is None:
            try:
                folder = check_adapter_files(
                    self._storage, adapter.storage_key, self._shapes, self._entry.max_rank
                )
                self._keys[name] = adapter.storage_key
                return folder
            except OSError as error:  # for example a storage that is not mounted, and may be back soon
                log.warning("the files of %s cannot be read now: %s", name, error)
                return None
            except AdapterError as error:
                reason = error.message
                self.quarantine(name, reason)
        raise AdapterError(WEIGHTS, "quarantined", f"The model {name} cannot be served: {reason}")

    def quarantine(self, name: str, reason: str) -> None:
        """Quarantines the adapter, if the database can be reached."""
        log.warning("%s is quarantined: %s", name, reason)
        try:
            with self._database.writer() as session:
                service.quarantine(session, name, reason)
        except SQLAlchemyError as error:  # the next request checks and refuses it again
            log.warning("the quarantine of %s is not recorded: %s", name, error)

    @cached_property
    def _settings(self) -> Settings:
        return Settings()

    @cached_property
    def _storage(self) -> Storage:
        return open_storage(self._settings)

    @cached_property
    def _entry(self) -> BaseModelEntry:
        with self._database.reader() as session:
            return Catalogue.read(session, self._settings).get(self._base_model)

    @cached_property
    def _shapes(self) -> Shapes:
        return module_shapes(self._settings.base_model_dir(self._entry))

    @cached_property
    def _database(self) -> Database:
        return Database(self._settings.sqlalchemy_url)
