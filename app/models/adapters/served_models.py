"""Models that can be asked: base models, and a project's adapters and checkpoints."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.context import Context
from app.core.errors import NotFoundError, UnavailableError
from app.core.settings import BaseModelEntry, Settings
from app.models.adapters import service as adapters_service
from app.models.adapters.base_shapes import known_shapes
from app.models.adapters.files import adapter_folder
from app.models.adapters.schemas import ModelList, ModelObject
from app.models.adapters.validation import AdapterError, describe_adapter
from app.models.catalogue import Catalogue, added_at, with_template
from app.models.serving_support import has_experts


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that can be asked: its served name, and the base whose engine holds it."""

    name: str
    base: BaseModelEntry
    """With the chat template that is used, where that is on this machine."""
    is_base: bool

    @property
    def base_model(self) -> str:
        """The base's name in the catalogue."""
        return self.base.name


def resolve_model(session: Session, settings: Settings, project_id: str, name: str) -> ServedModel:
    """Return the model that a request's `model` names.

    Raises:
        NotFoundError: no base model, adapter or checkpoint of this project has that name, or its base has
            left the catalogue.
        FailedDependencyError: the adapter is quarantined.
    """
    adapter = adapters_service.find_adapter(session, project_id, name)
    if adapter is not None:
        adapters_service.refuse_quarantined(adapter, "model")
    base_name = adapter.base_model if adapter else name
    base = with_template(settings, Catalogue.read_for(session, settings, base_name).get(base_name))
    return ServedModel(adapter.name if adapter else base.name, base, is_base=adapter is None)


def list_models(session: Session, context: Context) -> ModelList:
    """Return the base models, then the project's adapters and checkpoints, newest first.

    A key that is limited to some models sees only those.
    """
    since = added_at(session)
    entries = Catalogue.read(session, context.settings).entries
    bases = [ModelObject.of_base(entry, since[entry.name]) for entry in entries]
    adapters = [
        ModelObject.of_adapter(each) for each in adapters_service.list_adapters(session, context.project_id)
    ]
    return ModelList(data=[each for each in bases + adapters if context.may_ask(each.id)])


def retrieve_model(session: Session, context: Context, name: str) -> ModelObject:
    """Return a base model or an adapter of the project, with its lineage.

    Raises:
        NotFoundError: there is neither, or the caller's key is limited to other models.
    """
    if not context.may_ask(name):
        raise NotFoundError(
            f"The model '{name[:255]}' does not exist, or this API key does not have access to it.",
            code="model_not_found",
            param="model",
        )
    adapter = adapters_service.get_adapter(session, context.settings, context.project_id, name)
    if adapter is None:
        entry = Catalogue.read(session, context.settings).get(name)
        base = ModelObject.of_base(entry, added_at(session)[entry.name])
        return base.model_copy(update={"lineage": [base.id]})
    shown = ModelObject.of_adapter(adapter, adapters_service.lineage(session, adapter))
    base = Catalogue.read(session, context.settings).find(adapter.base_model)
    shapes = None
    with suppress(UnavailableError):  # the base is damaged, which those are told who want to train it
        shapes = known_shapes(context.settings, base)
    shown.experts_adapted = False if has_experts(shapes or {}) else None
    with (
        suppress(AdapterError, OSError),  # then it is quarantined, or soon will be
        adapter_folder(context.storage, adapter.storage_key) as folder,
    ):
        shown.target_modules = describe_adapter(folder, shapes).modules
    return shown
