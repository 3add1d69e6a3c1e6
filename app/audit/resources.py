"""Which tables the audit log watches: those with what people change, not with what comes of it."""

from __future__ import annotations

from collections.abc import Mapping

RESOURCES: Mapping[str, str] = {
    "adapters": "adapter",
    "aliases": "alias",
    "api_keys": "api_key",
    "base_models": "base_model",
    "batches": "batch",
    "comparisons": "comparison",
    "files": "file",
    "fine_tuning_jobs": "fine_tuning.job",
    "projects": "project",
    "rate_limits": "rate_limit",
    "service_accounts": "service_account",
    "uploads": "upload",
    "webhook_deliveries": "webhook.delivery",
    "webhook_endpoints": "webhook_endpoint",
}
"""What a row of each table is called in the log."""

NOT_WATCHED = frozenset(
    {
        "alias_changes",  # written with every change of an alias
        "alias_usage",
        "audit_logs",
        "batch_answers",
        "comparison_answers",
        "comparison_judgements",
        "comparison_questions",
        "creations",
        "engine_demands",
        "engines",
        "file_checks",
        "fine_tuning_attempts",
        "fine_tuning_checkpoints",
        "fine_tuning_events",
        "key_usage",
        "rate_windows",
        "requests_in_flight",
        "responses",  # answers, which may be many a second
        "shared_devices",
        "stored_base_models",  # follows from a base model, or from the settings
        "tracked_runs",
        "training_speeds",
        "upload_parts",
        "usage",
        "usage_batches",
        "usage_entries",
        "workers",
    }
)
"""Tables that follow from the others, or that only the service itself writes."""

SECRETS = frozenset({"api_keys", "key_sha256", "previous_secret", "secret"})
"""Columns whose values are in no log."""

ADDRESSES = frozenset({"url"})
"""Columns with URLs, of which only the scheme and the host are in the log."""

BOOKKEEPING = frozenset(
    {"last_used_at", "lease_epoch", "lease_until", "not_before", "updated_at", "worker_id"}
)
"""Columns whose change alone is no change."""

ENDS: Mapping[str, str] = {"archived_at": "archived", "deleted_at": "deleted", "revoked_at": "deleted"}
"""Columns that end a row once they are set, and what that is called."""
