"""Toque's HTTP service and command line. Imports neither torch nor vLLM."""

__version__ = "0.1.0"
