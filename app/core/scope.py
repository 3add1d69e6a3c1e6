"""Keys that the service adds to a request's ASGI scope."""

ARRIVED_AT = "toque.arrived_at"
"""The time at which the request arrived, by `time.perf_counter`."""

CALLER = "toque.caller"
"""The `Caller` whose API key the request came with; absent where no key is needed."""
