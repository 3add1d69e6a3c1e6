"""The service's OpenAPI document."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

_PUBLISHED_NAMES = {
    "app__datasets__report__Finding": "app__files__report__Finding",
    "app__fine_tuning__preflight__schemas__Finding": "app__fine_tuning__preflight_schemas__Finding",
}
"""FastAPI names classes that share a name after their modules. Generated clients know these two by the names
under which they were first published, wherever their modules are now."""


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of the app's routes."""
    document = json.dumps(
        get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    )
    for name, published in _PUBLISHED_NAMES.items():
        document = document.replace(name, published)
    return json.loads(document)
