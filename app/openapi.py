"""Prints the service's OpenAPI document: `python -m app.openapi > openapi/openapi.json`."""

from __future__ import annotations

import json

from app.main import create_app
from app.settings import Settings


def document() -> str:
    """The document as it is committed."""
    return json.dumps(create_app(Settings.model_construct()).openapi(), indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    print(document(), end="")
