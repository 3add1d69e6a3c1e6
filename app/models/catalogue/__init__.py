"""The catalogue of base models, and what is known of each once it is prepared on this machine."""

from app.models.catalogue.catalogue import Catalogue, added_at
from app.models.catalogue.prepared import (
    chat_template,
    hidden_size,
    is_prepared,
    obtainable_names,
    prepared_base,
    prepared_names,
    reading_files,
    stored_base,
    template_options,
    with_template,
)

__all__ = [
    "Catalogue",
    "added_at",
    "chat_template",
    "hidden_size",
    "is_prepared",
    "obtainable_names",
    "prepared_base",
    "prepared_names",
    "reading_files",
    "stored_base",
    "template_options",
    "with_template",
]
