"""The published specification is the one that the service has, and the service keeps to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import schemathesis
from hypothesis import settings
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
    use_after_free,
)

from app.api.main import create_app
from app.core.settings import Settings
from tests.support.service import API_KEY, Service

pytestmark = pytest.mark.one_database

SPECIFICATION = Path(__file__).parents[3] / "openapi" / "openapi.json"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
    use_after_free,
    ignored_auth,
]

# Query parameters that a route does not know are ignored, as everywhere on the web.
CONFIGURATION = SchemathesisConfig.from_dict(
    {
        "generation": {"allow-extra-parameters": False},
        "auth": {"openapi": {"HTTPBearer": {"bearer": API_KEY}}},
    }
)
schema = schemathesis.openapi.from_path(SPECIFICATION, config=CONFIGURATION)


def test_the_committed_specification_is_current() -> None:
    document = create_app(Settings.model_construct()).openapi()
    written = json.dumps(document, indent=2, sort_keys=True) + "\n"
    assert SPECIFICATION.read_text("utf-8") == written, "run `make generated`"


# Without an engine a completion is 503, and so is readiness: both are meant.
EXPECTED_SERVER_ERRORS = {
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/fine_tuning/alpha/graders/run",
    "/health/ready",
}


def lists_of_texts() -> set[str]:
    """Query parameters that are lists of any texts: `models=false`, wrong data to the generator, is one."""
    names: set[str] = set()
    for operations in json.loads(SPECIFICATION.read_text("utf-8"))["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                kinds = parameter["schema"].get("anyOf", [parameter["schema"]])
                if parameter["in"] == "query" and any(
                    kind.get("items") == {"type": "string"} for kind in kinds
                ):
                    names.add(parameter["name"])
    return names


LISTS_OF_TEXTS = lists_of_texts()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@schema.parametrize()
@settings(max_examples=15)
def test_the_service_keeps_to_it(case: schemathesis.Case, service: Service) -> None:
    response = case.call(base_url=service.url)
    excluded = (
        [not_a_server_error] if case.path in EXPECTED_SERVER_ERRORS and response.status_code == 503 else []
    )
    if LISTS_OF_TEXTS & set(case.query or {}):
        excluded.append(negative_data_rejection)
    if response.status_code == 413:  # wrong data of many megabytes is refused for its size
        excluded.append(negative_data_rejection)
    case.validate_response(response, checks=CHECKS, excluded_checks=excluded)
