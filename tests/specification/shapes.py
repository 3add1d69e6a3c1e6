"""The shapes of OpenAI's responses: strict JSON Schemas, made from the types of its Python client.

Those types are generated from OpenAI's specification, and have its fields, enumerations and unions. They do
not tell a field that may be null from one that may be absent, so what the specification says of that is
written down here (https://github.com/openai/openai-openapi, read in November 2026). Fields are named
`Type.field`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator
from openai.types import Batch, Completion, FileDeleted, FileObject, Model, ModelDeleted, Upload
from openai.types.admin.organization import AuditLogListResponse, Project, UsageCompletionsResponse
from openai.types.admin.organization.projects import (
    APIKeyDeleteResponse,
    ProjectAPIKey,
    ProjectRateLimit,
    ProjectServiceAccount,
    ServiceAccountCreateResponse,
    ServiceAccountDeleteResponse,
)
from openai.types.admin.organization.projects.service_accounts import APIKeyCreateResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.alpha import GraderRunResponse, GraderValidateResponse
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from openai.types.responses import Response, ResponseItem, ResponseStreamEvent
from openai.types.uploads import UploadPart
from openai.types.webhooks import (
    DeletedWebhookEndpoint,
    WebhookEndpoint,
    WebhookEndpointTestResult,
    WebhookEndpointWithSecret,
    WebhookEventTypeList,
)
from pydantic import TypeAdapter

from app.audit.resources import RESOURCES
from app.fine_tuning.methods.hyperparameters import HYPERPARAMETERS

_RESPONSE_REQUIRED_NULLS = {
    "Response.error",
    "Response.incomplete_details",
    "Response.instructions",
    "Response.metadata",
    "Response.temperature",
    "Response.top_p",
    "FunctionTool.parameters",
    "FunctionTool.strict",
    "ResponseErrorEvent.code",
    "ResponseErrorEvent.param",
}
_RESPONSE_OPTIONAL_NULLS = {
    "Response.background",
    "Response.completed_at",
    "Response.conversation",
    "Response.max_output_tokens",
    "Response.max_tool_calls",
    "Response.previous_response_id",
    "Response.prompt",
    "Response.prompt_cache_key",
    "Response.prompt_cache_retention",
    "Response.reasoning",
    "Response.safety_identifier",
    "Response.service_tier",
    "Response.top_logprobs",
    "Response.truncation",
    "Reasoning.effort",
    "Reasoning.summary",
    "FunctionTool.description",
    "ResponseTextConfig.verbosity",
    "ResponseFormatTextJSONSchemaConfig.strict",
    "ResponseReasoningItem.encrypted_content",
}
REQUIRED_NULLS: Mapping[Any, set[str]] = {
    Response: _RESPONSE_REQUIRED_NULLS,
    ResponseStreamEvent: _RESPONSE_REQUIRED_NULLS,
    ResponseItem: _RESPONSE_REQUIRED_NULLS,
    ChatCompletion: {
        "Choice.logprobs",
        "ChoiceLogprobs.content",
        "ChoiceLogprobs.refusal",
        "ChatCompletionMessage.content",
        "ChatCompletionMessage.refusal",
        "ChatCompletionTokenLogprob.bytes",
        "TopLogprob.bytes",
    },
    ChatCompletionChunk: {
        "Choice.finish_reason",
        "ChoiceLogprobs.content",
        "ChoiceLogprobs.refusal",
        "ChatCompletionTokenLogprob.bytes",
        "TopLogprob.bytes",
    },
    Completion: {"CompletionChoice.logprobs"},
    FineTuningJob: {
        "FineTuningJob.error",
        "FineTuningJob.fine_tuned_model",
        "FineTuningJob.finished_at",
        "FineTuningJob.trained_tokens",
        "FineTuningJob.validation_file",
        "Error.param",
    },
    GraderRunResponse: {
        "Metadata.token_usage",
        "Metadata.sampled_model_name",
        "MetadataErrors.python_grader_server_error_type",
        "MetadataErrors.python_grader_runtime_error_details",
        "MetadataErrors.model_grader_server_error_details",
    },
    ProjectAPIKey: {"ProjectAPIKey.last_used_at"},
}
"""Fields that must be there, and may be null."""

OPTIONAL_NULLS: Mapping[Any, set[str]] = {
    Response: _RESPONSE_OPTIONAL_NULLS,
    ResponseStreamEvent: _RESPONSE_OPTIONAL_NULLS,
    ResponseItem: _RESPONSE_OPTIONAL_NULLS,
    ChatCompletionChunk: {
        "Choice.logprobs",
        "ChoiceDelta.content",
        "ChoiceDelta.refusal",
        "ChatCompletionChunk.usage",
    },
    Upload: {"Upload.file"},
    FineTuningJob: {
        "FineTuningJob.estimated_finish",
        "FineTuningJob.integrations",
        "FineTuningJob.metadata",
        "Hyperparameters.batch_size",
    },
    Model: {"Model.shutdown_date"},
    Batch: {"Batch.metadata", "BatchError.param", "BatchError.line"},
    Project: {"Project.archived_at"},
    UsageCompletionsResponse: {
        "UsageCompletionsResponse.next_page",
        "DataResultOrganizationUsageCompletionsResult.project_id",
        "DataResultOrganizationUsageCompletionsResult.model",
        "DataResultOrganizationUsageCompletionsResult.api_key_id",
    },
}
"""Fields that may be absent, and may be null. Any other field that may be absent is never null."""

_HYPERPARAMETERS = {each.name for each in HYPERPARAMETERS}
_WEBHOOK_ENDPOINT = {"enabled", "failures"}
EXTRAS: Mapping[Any, Mapping[str, set[str]]] = {
    AuditLogListResponse: {
        "AuditLogListResponse": {"object", "ip_address", "before", "after"}
        | {
            f"{resource}.{kind}"
            for resource in RESOURCES.values()
            for kind in ("created", "updated", "deleted", "archived")
        }
    },
    WebhookEndpoint: {"WebhookEndpoint": _WEBHOOK_ENDPOINT},
    WebhookEndpointWithSecret: {"WebhookEndpointWithSecret": _WEBHOOK_ENDPOINT},
    ChatCompletion: {
        "ChatCompletion": {"prompt_logprobs"},
        "ChatCompletionMessage": {"reasoning", "reasoning_content"},
    },
    ChatCompletionChunk: {"ChoiceDelta": {"reasoning", "reasoning_content"}},
    Completion: {"CompletionChoice": {"prompt_logprobs"}},
    Response: {"Response": {"store"}},
    ResponseStreamEvent: {
        "Response": {"store"},
        # The specification requires it, and the client's type does not have it yet.
        "ResponseFunctionCallArgumentsDoneEvent": {"name"},
    },
    FileObject: {"FileObject": {"sha256"}},
    Upload: {"Upload": {"parts"}, "FileObject": {"sha256"}},
    UploadPart: {"UploadPart": {"bytes", "sha256"}},
    Model: {
        "Model": {
            "base_model",
            "fine_tuning_job_id",
            "parent",
            "lineage",
            "target_modules",
            "experts_adapted",
            "quantization",
            "quarantine_reason",
            "parity",
        }
    },
    FineTuningJob: {
        "FineTuningJob": {
            "parent",
            "priority",
            "pause_reason",
            "queue_position",
            "estimated_start",
            "suffix",
            "training_file_sha256",
            "validation_file_sha256",
            "validation_split",
        },
        "Hyperparameters": _HYPERPARAMETERS,
        "SupervisedHyperparameters": _HYPERPARAMETERS,
        "DpoHyperparameters": _HYPERPARAMETERS,
    },
    FineTuningJobCheckpoint: {
        "Metrics": {
            f"{measured}_reward_{metric}"
            for measured in ("train", "valid", "full_valid")
            for metric in ("accuracy", "margin")
        }
    },
    Project: {"Project": {"slug"}},
    ProjectAPIKey: {"ProjectAPIKey": {"role", "models"}},
    ProjectRateLimit: {"ProjectRateLimit": {"max_concurrent_requests"}},
    ServiceAccountCreateResponse: {"APIKey": {"role", "models"}},
    APIKeyCreateResponse: {"APIKeyCreateResponse": {"role", "models"}},
}
"""Fields of ours beside OpenAI's, by object; docs/api.md describes them."""


@dataclass(frozen=True)
class Deviation:
    """A place where we differ from the specification, and why; the schema of what is true here."""

    field: str
    schema: dict[str, Any]
    reason: str


_NULL: dict[str, Any] = {"type": "null"}
DEVIATIONS: Mapping[Any, tuple[Deviation, ...]] = {
    AuditLogListResponse: (
        Deviation(
            "AuditLogListResponse.type", {"type": "string"}, "changes of resources of ours are logged, too"
        ),
    ),
    GraderValidateResponse: (
        Deviation(
            "MultiGrader.graders",
            {"type": ["object", "array"]},
            "OpenAI's guide has graders by name, and the specification's own example has a list",
        ),
        Deviation(
            "GraderValidateResponse.grader",
            {"type": "object", "required": ["type"], "properties": {"type": {"const": "label_model"}}},
            "a label_model can be used by itself, too",
        ),
    ),
    Completion: (
        Deviation("CompletionChoice.finish_reason", _NULL, "null until the last chunk, as OpenAI's own"),
        Deviation(
            "Logprobs.token_logprobs",
            {"type": "array", "items": {"type": ["number", "null"]}},
            "the first token of an echoed prompt has none; OpenAI's API says null, too",
        ),
        Deviation(
            "Logprobs.top_logprobs",
            {
                "type": "array",
                "items": {"type": ["object", "null"], "additionalProperties": {"type": "number"}},
            },
            "as above",
        ),
        Deviation("Completion.usage", _NULL, "in chunks, when the usage was asked for, as OpenAI's own"),
    ),
    FileObject: (
        Deviation(
            "FileObject.purpose", {"const": "evals"}, "OpenAI's request has this purpose, its response not"
        ),
    ),
    ProjectRateLimit: tuple(
        Deviation(f"ProjectRateLimit.{field}", _NULL, "nothing is limited unless it is set")
        for field in ("max_requests_per_1_minute", "max_tokens_per_1_minute")
    ),
    FineTuningJob: (
        Deviation(
            "FineTuningJob.status", {"const": "paused"}, "OpenAI pauses jobs, too, but has no word for it"
        ),
    ),
}


def validator(type_: Any) -> Draft202012Validator:
    """Returns a validator of one object of the client's type."""
    return Draft202012Validator(_strict(type_))


def page_validator(type_: Any) -> Draft202012Validator:
    """Returns a validator of a page of such objects. `first_id` and `last_id` are null on an empty page."""
    schema = _strict(type_)
    cursor = {"type": ["string", "null"]}
    page = {
        "type": "object",
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {key: schema[key] for key in schema.keys() - {"$defs"}}},
            "has_more": {"type": "boolean"},
            "first_id": cursor,
            "last_id": cursor,
        },
        "required": ["object", "data"],
        "additionalProperties": False,
    }
    return Draft202012Validator(page | {"$defs": schema.get("$defs", {})})


ERROR = Draft202012Validator(
    {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {
                    "message": {"type": "string", "minLength": 1},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
                "required": ["message", "type", "param", "code"],
            }
        },
        "required": ["error"],
        "additionalProperties": False,
    }
)
"""`ErrorResponse`. An error may have fields of ours beside these."""


def _strict(type_: Any) -> dict[str, Any]:
    schema = TypeAdapter(type_).json_schema()
    for each in [schema, *schema.get("$defs", {}).values()]:
        if "properties" in each:
            _tighten(each, type_)
    for deviation in DEVIATIONS.get(type_, ()):
        title, field = deviation.field.split(".")
        [place] = [each for each in [schema, *schema.get("$defs", {}).values()] if each.get("title") == title]
        place["properties"][field] = {"anyOf": [place["properties"][field], deviation.schema]}
    return schema


def _tighten(schema: dict[str, Any], type_: Any) -> None:
    """Refuses unknown fields, and null where the specification does not have it."""
    title, properties = schema["title"], schema["properties"]
    required: set[str] = set(schema.get("required", ()))
    for field, allowed in properties.items():
        if f"{title}.{field}" in REQUIRED_NULLS.get(type_, ()):
            required.add(field)
            properties[field] = {"anyOf": [allowed, _NULL]}
        elif f"{title}.{field}" not in OPTIONAL_NULLS.get(type_, ()) and "anyOf" in allowed:
            allowed["anyOf"] = [each for each in allowed["anyOf"] if each != _NULL]
    schema["required"] = sorted(required)
    schema["additionalProperties"] = False
    for extra in EXTRAS.get(type_, {}).get(title, ()):
        properties.setdefault(extra, {})


_ACCOUNTS = "/v1/organization/projects/{project_id}/service_accounts"
_KEYS = "/v1/organization/projects/{project_id}/api_keys"
_LIMITS = "/v1/organization/projects/{project_id}/rate_limits"
SHAPES = {
    "POST /v1/chat/completions": validator(ChatCompletion),
    "POST /v1/completions": validator(Completion),
    "POST /v1/responses": validator(Response),
    "GET /v1/responses/{response_id}": validator(Response),
    "GET /v1/responses/{response_id}/input_items": page_validator(ResponseItem),
    "GET /v1/models": page_validator(Model),
    "GET /v1/models/{model}": validator(Model),
    "DELETE /v1/models/{model}": validator(ModelDeleted),
    "GET /v1/files": page_validator(FileObject),
    "POST /v1/files": validator(FileObject),
    "GET /v1/files/{file_id}": validator(FileObject),
    "DELETE /v1/files/{file_id}": validator(FileDeleted),
    "POST /v1/uploads": validator(Upload),
    "POST /v1/uploads/{upload_id}/cancel": validator(Upload),
    "POST /v1/uploads/{upload_id}/complete": validator(Upload),
    "POST /v1/uploads/{upload_id}/parts": validator(UploadPart),
    "POST /v1/fine_tuning/jobs": validator(FineTuningJob),
    "GET /v1/fine_tuning/jobs": page_validator(FineTuningJob),
    "GET /v1/fine_tuning/jobs/{job_id}": validator(FineTuningJob),
    "POST /v1/fine_tuning/jobs/{job_id}/cancel": validator(FineTuningJob),
    "POST /v1/fine_tuning/jobs/{job_id}/pause": validator(FineTuningJob),
    "POST /v1/fine_tuning/jobs/{job_id}/resume": validator(FineTuningJob),
    "GET /v1/fine_tuning/jobs/{job_id}/events": page_validator(FineTuningJobEvent),
    "GET /v1/fine_tuning/jobs/{job_id}/checkpoints": page_validator(FineTuningJobCheckpoint),
    "POST /v1/fine_tuning/alpha/graders/run": validator(GraderRunResponse),
    "POST /v1/fine_tuning/alpha/graders/validate": validator(GraderValidateResponse),
    "GET /v1/batches": page_validator(Batch),
    "POST /v1/batches": validator(Batch),
    "GET /v1/batches/{batch_id}": validator(Batch),
    "POST /v1/batches/{batch_id}/cancel": validator(Batch),
    "GET /v1/organization/projects": page_validator(Project),
    "POST /v1/organization/projects": validator(Project),
    "GET /v1/organization/projects/{project_id}": validator(Project),
    "POST /v1/organization/projects/{project_id}": validator(Project),
    "POST /v1/organization/projects/{project_id}/archive": validator(Project),
    f"GET {_ACCOUNTS}": page_validator(ProjectServiceAccount),
    f"POST {_ACCOUNTS}": validator(ServiceAccountCreateResponse),
    f"GET {_ACCOUNTS}/{{service_account_id}}": validator(ProjectServiceAccount),
    f"DELETE {_ACCOUNTS}/{{service_account_id}}": validator(ServiceAccountDeleteResponse),
    f"POST {_ACCOUNTS}/{{service_account_id}}/api_keys": validator(APIKeyCreateResponse),
    f"GET {_KEYS}": page_validator(ProjectAPIKey),
    f"GET {_KEYS}/{{api_key_id}}": validator(ProjectAPIKey),
    f"POST {_KEYS}/{{api_key_id}}": validator(ProjectAPIKey),
    f"DELETE {_KEYS}/{{api_key_id}}": validator(APIKeyDeleteResponse),
    f"GET {_LIMITS}": page_validator(ProjectRateLimit),
    f"POST {_LIMITS}/{{rate_limit_id}}": validator(ProjectRateLimit),
    "GET /v1/organization/usage/completions": validator(UsageCompletionsResponse),
    "GET /v1/organization/audit_logs": page_validator(AuditLogListResponse),
    "GET /v1/webhook_event_types": validator(WebhookEventTypeList),
    "GET /v1/webhook_endpoints": page_validator(WebhookEndpoint),
    "POST /v1/webhook_endpoints": validator(WebhookEndpointWithSecret),
    "GET /v1/webhook_endpoints/{webhook_endpoint_id}": validator(WebhookEndpoint),
    "POST /v1/webhook_endpoints/{webhook_endpoint_id}": validator(WebhookEndpoint),
    "DELETE /v1/webhook_endpoints/{webhook_endpoint_id}": validator(DeletedWebhookEndpoint),
    "POST /v1/webhook_endpoints/{webhook_endpoint_id}/rotate_secret": validator(WebhookEndpointWithSecret),
    "POST /v1/webhook_endpoints/{webhook_endpoint_id}/test": validator(WebhookEndpointTestResult),
}
"""What a successful response is, by route."""

CHUNKS = {
    "POST /v1/chat/completions": validator(ChatCompletionChunk),
    "POST /v1/completions": validator(Completion),
    "POST /v1/responses": validator(ResponseStreamEvent),
}
"""What the events of a stream are, by route."""
