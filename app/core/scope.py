"""Keys that the service adds to a request's ASGI scope."""

ARRIVED_AT = "toque.arrived_at"
"""When the request came, by `time.perf_counter`."""
