"""What every benchmark shares: the timing of calls, and the file of results."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
from rich.console import Console

from jaxtrader.files import timestamp, write_whole
from jaxtrader.provenance import git_commit, machine, versions
from jaxtrader.reporting.summary import strict

T = TypeVar("T")


def seconds_per_call(call: Callable[[T], T], carry: T, repeats: int) -> tuple[float, float, T]:
    """Times a function that maps a carry to the next one.

    Returns:
      (seconds of the first call, which may compile; median of the `repeats` later ones; carry).
    """
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        carry = jax.block_until_ready(call(carry))
        times.append(time.perf_counter() - began)
    return times[0], statistics.median(times[1:]), carry


def write_results(
    output: Path | None, benchmark: str, results: Mapping[str, Any], console: Console
) -> None:
    """Writes `results` with what made them as JSON; without an `output`, does nothing."""
    if output is None:
        return
    about = {
        "benchmark": benchmark,
        "created": timestamp(),
        "git_commit": git_commit(),
        "versions": versions(),
        "machine": machine(),
    }
    write_whole(output, json.dumps(strict({**about, **results}), indent=2) + "\n")
    console.print(f"written: {output}", soft_wrap=True)
