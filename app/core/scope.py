"""Keys that the service adds to a request's ASGI scope."""

ARRIVED_AT = "toque.arrived_at"
"""The time at which the request arrived, by `time.perf_counter`."""

CALLER = "toque.caller"
"""The `Caller` whose API key the request came with; absent where no key is needed."""

REQUEST_ID = "toque.request_id"
"""The id in the response's `x-request-id`, which may be the caller's own."""

MODEL = "toque.model"
"""The model that a completion request is for, by its served name once that is known."""

REFUSED_WITH = "toque.refused_with"
"""The status that the server answered by itself while the application was still at work."""

HELD_BACK = "toque.held_back"
"""True once the answer, a refusal, waits for a while before it is sent."""

IS_ENDLESS = "toque.is_endless"
"""True if the answer is a stream that does not end by itself: a server that stops does not wait for it."""
