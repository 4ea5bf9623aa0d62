"""Where commands print."""

from __future__ import annotations

import sys

from rich.console import Console


def make_console() -> Console:
    """Standard output. A pipe or a log file has no width of its own: 80 columns would cut lines."""
    return Console(width=None if sys.stdout.isatty() else 120)
