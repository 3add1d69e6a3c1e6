"""Serving many adapters over one base: correct, fast, cheap to reach? `python -m benchmarks.serving`."""
