"""Prometheus metrics of answers, under the names and with the buckets of OpenTelemetry's conventions.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram

from app.completions.model_labels import ModelLabels

_LABELS = ("gen_ai_operation_name", "gen_ai_response_model")
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/responses": "responses",
}
_TO_FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0
)  # fmt: skip
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_DURATION = tuple(0.01 * 2**power for power in range(16))
_TOKENS = tuple(4**power for power in range(11))


class GenerationMetrics:
    """What the answers of this process took, by model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, meaning, (*_LABELS, *labels), buckets=buckets, registry=registry)

        self._duration = histogram(
            "gen_ai_server_request_duration_seconds", "From the request to the end of its answer", _DURATION
        )
        self._to_first_token = histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "From the request to the first byte of its stream",
            _TO_FIRST_TOKEN,
        )
        self._per_token = histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Between the tokens of a stream after the first, on average",
            _PER_TOKEN,
        )
        self._queue = histogram(
            "toque_gateway_queue_seconds", "From the request until an engine was asked", _TO_FIRST_TOKEN
        )
        self._tokens = histogram(
            "gen_ai_client_token_usage", "Tokens of requests and answers", _TOKENS, "gen_ai_token_type"
        )
        self._labels = ModelLabels(self._forget)

    def count_tokens(self, path: str, model: str, input_tokens: int, output_tokens: int) -> None:
        """Count an answer's tokens, whoever waits for it."""
        labels = _OPERATIONS[path], self._labels.label(model)
        self._tokens.labels(*labels, "input").observe(input_tokens)
        self._tokens.labels(*labels, "output").observe(output_tokens)

    def observe(
        self,
        path: str,
        model: str,
        *,
        queue_seconds: float,
        first_token_seconds: float | None,
        seconds: float,
        output_tokens: int,
    ) -> None:
        """Record the times of an answer to a caller, from the request's arrival on.

        `first_token_seconds` is None if the answer was no stream.
        """
        labels = _OPERATIONS[path], self._labels.label(model)
        self._queue.labels(*labels).observe(queue_seconds)
        self._duration.labels(*labels).observe(seconds)
        if first_token_seconds is None:
            return
        self._to_first_token.labels(*labels).observe(first_token_seconds)
        if output_tokens > 1:
            between = (seconds - first_token_seconds) / (output_tokens - 1)
            self._per_token.labels(*labels).observe(between)

    def _forget(self, model: str) -> None:
        for histogram in (self._duration, self._to_first_token, self._per_token, self._queue, self._tokens):
            histogram.remove_by_labels({"gen_ai_response_model": model})
