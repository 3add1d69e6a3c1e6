"""What is known of a base model's modules on this machine."""

from __future__ import annotations

from app.core.settings import BaseModelEntry, Settings
from app.models.adapters.validation import Shapes, module_shapes
from app.models.catalogue import is_prepared, reading_files
from app.models.serving_support import adapted, has_experts


def known_shapes(settings: Settings, base: BaseModelEntry | None) -> Shapes | None:
    """Return the shapes of the base's modules, or None if it is not prepared on this machine.

    Raises:
        UnavailableError: its files are damaged, or cannot be read now.
    """
    if base is None or not is_prepared(settings, base):
        return None
    with reading_files(base):
        return module_shapes(settings.base_model_dir(base))


def linear_modules(settings: Settings, base: BaseModelEntry) -> list[str] | None:
    """Return the full names of the modules that adapters of the base have weights for.

    None if the base is not prepared on this machine.

    Raises:
        UnavailableError: its files are damaged, or cannot be read now.
    """
    shapes = known_shapes(settings, base)
    return None if shapes is None else sorted(adapted(shapes))


def base_has_experts(settings: Settings, base: BaseModelEntry) -> bool:
    """Return whether the base, if it is prepared on this machine, is a mixture of experts.

    Raises:
        UnavailableError: its files are damaged, or cannot be read now.
    """
    return has_experts(known_shapes(settings, base) or {})
