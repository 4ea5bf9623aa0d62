"""Studies a person runs: `python -m experiments.stage5`."""
