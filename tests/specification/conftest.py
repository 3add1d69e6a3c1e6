"""The engine that tests of the API ask."""

from tests.app.conftest import engine

__all__ = ["engine"]
