"""Measurements, run from a checkout as `python -m benchmarks.<room>.<name>`; never installed."""
