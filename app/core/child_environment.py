"""The environment of a child process: that of this one, without the secrets that the child does not need."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping

DATABASE = ("TOQUE_DATABASE_URL", "PGPASSWORD")
"""What a process needs to open the database."""
PROXIES = (
    *(f"{scheme}_proxy" for scheme in ("http", "https", "all")),
    *(f"{scheme}_PROXY" for scheme in ("HTTP", "HTTPS", "ALL")),
)
"""What a process needs to reach other machines; a proxy's address may have a password."""
HUGGING_FACE = ("HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN")
DOWNLOADS = (*HUGGING_FACE, "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", *PROXIES)
"""What a process needs to download base models."""
_OF_TRACKERS = {
    "mlflow": (
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "MLFLOW_TRACKING_URI",
        "DATABRICKS_TOKEN",
    ),
    "trackio": ("TRACKIO_SERVER_URL", "TRACKIO_WRITE_TOKEN"),
    "wandb": ("WANDB_API_KEY",),
}
TRACKERS: Mapping[str, tuple[str, ...]] = {
    "": (),
    "mlflow": (*_OF_TRACKERS["mlflow"], *PROXIES),
    "trackio": (*_OF_TRACKERS["trackio"], *HUGGING_FACE, *PROXIES),
    "wandb": (*_OF_TRACKERS["wandb"], *PROXIES),
}
"""What a process needs to send metrics to a tracker, by its name in the settings."""
ENGINES = ("TOQUE_ENGINE_URLS",)
"""What a process needs to ask vLLM servers that are run by somebody else."""
_BUCKET = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *("AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
    *("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT_KEY"),
    *(
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_ACCESS_KEY",
        "AZURE_STORAGE_TOKEN",
        "AZURE_STORAGE_SAS_KEY",
    ),
    *("AZURE_STORAGE_SAS_TOKEN", "AZURE_CLIENT_SECRET", "AZURE_STORAGE_CLIENT_SECRET"),
    "AZURE_FEDERATED_TOKEN_FILE",
    *PROXIES,
)
"""What a process needs to open a storage that is in a bucket."""
RAY = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""What a process needs to join a Ray cluster."""
TELEMETRY = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
"""What a process needs to send traces; the headers may have a key."""

_SECRET_NAMES = frozenset(
    {*ENGINES, *TELEMETRY, *(name for names in _OF_TRACKERS.values() for name in names)}
)
_SECRET_WORDS = frozenset(
    {
        "APIKEY",
        "AUTH",
        "CREDENTIAL",
        "CREDENTIALS",
        "KEY",
        "PASSWD",
        "PASSWORD",
        "PGPASSWORD",
        "SECRET",
        "TOKEN",
    }
)
_URL_WITH_PASSWORD = re.compile(r"://[^/\s@]*:[^/\s@]*@")


def child_environment(secrets: Collection[str] = (), *, has_settings: bool = False) -> dict[str, str]:
    """Return the variables that a child process may have.

    Args:
        secrets: the names of the secrets that it needs.
        has_settings: whether it reads the settings, `TOQUE_*`.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name in secrets
        or (not _is_secret(name, value) and (has_settings or not name.startswith("TOQUE_")))
    }


def storage_secrets() -> tuple[str, ...]:
    """Return the names of what a process needs to open the storage; none unless it is in a bucket."""
    url = os.environ.get("TOQUE_STORAGE_URL", "file:")
    return () if url.startswith("file:") or not url else _BUCKET


def worker_environment(tracker: str) -> dict[str, str]:
    """Return the variables of a training worker; `tracker` is its name in the settings."""
    return child_environment(
        (*DATABASE, *storage_secrets(), *TELEMETRY, *TRACKERS[tracker]), has_settings=True
    )


def engine_environment() -> dict[str, str]:
    """Return the variables of an engine."""
    return child_environment((*DATABASE, *storage_secrets(), *TELEMETRY), has_settings=True)


def _is_secret(name: str, value: str) -> bool:
    if name in _SECRET_NAMES:
        return True
    words = name.upper().split("_")
    return not _SECRET_WORDS.isdisjoint(words) or _URL_WITH_PASSWORD.search(value) is not None
