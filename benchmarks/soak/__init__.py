"""Kill everything, all the time, for minutes, and count: `python -m benchmarks.soak --minutes 10`."""
