from tests.app.conftest import engine

__all__ = ["engine"]
