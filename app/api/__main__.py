"""Prints the service's OpenAPI document: `python -m app.api > openapi/openapi.json`."""

from __future__ import annotations

import json

from app.api.main import create_app
from app.core.settings import Settings

if __name__ == "__main__":
    print(json.dumps(create_app(Settings.model_construct()).openapi(), indent=2, sort_keys=True))
