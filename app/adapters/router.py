"""`/v1/models`."""

from __future__ import annotations

from fastapi import APIRouter

from app.adapters import service
from app.adapters.schemas import ModelDeleted, ModelList, ModelObject
from app.base_models import find_base_model
from app.dependencies import CurrentProject, ReadSession, SettingsDep, WriteSession
from app.errors import ERROR_RESPONSES

router = APIRouter(prefix="/v1/models", tags=["Models"], responses=ERROR_RESPONSES)


@router.get("")
def list_models(project: CurrentProject, session: ReadSession, settings: SettingsDep) -> ModelList:
    """Base models, then the project's fine-tuned models and checkpoints, newest first."""
    bases = [ModelObject.of_base(entry) for entry in settings.base_models]
    adapters = [ModelObject.of_adapter(adapter) for adapter in service.list_adapters(session, project.id)]
    return ModelList(data=bases + adapters)


@router.get("/{model}")
def retrieve_model(
    model: str, project: CurrentProject, session: ReadSession, settings: SettingsDep
) -> ModelObject:
    """One model."""
    adapter = service.get_adapter(session, settings, project.id, model)
    return (
        ModelObject.of_adapter(adapter) if adapter else ModelObject.of_base(find_base_model(settings, model))
    )


@router.delete("/{model}")
def delete_model(
    model: str, project: CurrentProject, session: WriteSession, settings: SettingsDep
) -> ModelDeleted:
    """Deletes a fine-tuned model or a checkpoint."""
    return ModelDeleted(id=service.delete_adapter(session, settings, project.id, model).name)
