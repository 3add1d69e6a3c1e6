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
"""FastAPI names classes of one name after their modules. Generated clients know these two by the names that
they were first published under, wherever the modules are now."""


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of the app's routes."""
    document = json.dumps(
        get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    )
    for name, published in _PUBLISHED_NAMES.items():
        document = document.replace(name, published)
    return json.loads(document)
