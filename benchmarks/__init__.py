"""Measurements a person runs: `python -m benchmarks.steps`."""
