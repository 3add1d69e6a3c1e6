"""Loads published adapters into vLLM on their first request: a plugin in every process that vLLM starts.

The database says which adapters there are, so any engine serves any of them after any restart, with
nobody's help. vLLM asks `resolve_lora` once for each name, one caller at a time, then keeps the answer.
"""

from __future__ import annotations

import asyncio
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from app.adapters.service import find_servable
from app.database import Database
from app.settings import BaseModelEntry, Settings
from workers.inference.adapter_check import AdapterError, Shapes, check_adapter, module_shapes
from workers.processes import die_with_parent

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest


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


class PublishedAdapters:
    """The adapters of one base model; connects to the database when first asked."""

    def __init__(self, base_model: str) -> None:
        self._base_model = base_model

    async def resolve(self, name: str) -> LoRARequest | None:
        """The adapter of that name, or None if none is published.

        Raises:
            AdapterError: it would harm the engine; vLLM answers 400 with the message.
        """
        from vllm.lora.request import LoRARequest  # noqa: PLC0415

        folder = await asyncio.to_thread(self.folder_of, name)
        # vLLM sets an id of its own.
        return LoRARequest(lora_name=name, lora_int_id=1, lora_path=str(folder)) if folder else None

    def folder_of(self, name: str) -> Path | None:
        """The checked folder of the adapter of that name, or None if none is published.

        Raises:
            AdapterError: it must not be loaded.
        """
        with self._database.reader() as session:
            adapter = find_servable(session, self._base_model, name)
        if adapter is None:
            return None
        folder = self._settings.storage_root / adapter.storage_key
        try:
            check_adapter(folder, self._shapes, self._entry.max_rank)
        except AdapterError as error:
            raise AdapterError(f"The model {name} cannot be served: {error}") from error
        return folder

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
