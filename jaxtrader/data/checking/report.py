"""What checks have found, for programs (JSON) and for people (Markdown)."""

from __future__ import annotations

import importlib.metadata
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jaxtrader.data.checking.findings import Limits
from jaxtrader.data.checking.run import CheckedFile
from jaxtrader.errors import ConfigError
from jaxtrader.files import write_whole

FORMAT = 1
SEVERITIES = ("fatal", "care", "note")


def write_report(checked: Sequence[CheckedFile], path: Path, limits: Limits | None = None) -> Path:
    """Writes `path` (JSON), and beside it the same as Markdown.

    Returns:
        The path of the Markdown.

    Raises:
        ConfigError: the path does not end with .json.
        JaxtraderError: the folder cannot be written.
    """
    if path.suffix != ".json":
        raise ConfigError(f"report {path}: name a file that ends with .json; .md comes beside it")
    limits = Limits() if limits is None else limits
    verdicts = Counter(each.verdict.name for each in checked)
    report = {
        "format": FORMAT,
        "jaxtrader": importlib.metadata.version("jaxtrader"),
        "limits": asdict(limits),
        "verdicts": dict(verdicts),
        "files": [each.to_dict() for each in checked],
    }
    write_whole(path, json.dumps(report, indent=2) + "\n")
    readable = path.with_suffix(".md")
    write_whole(readable, markdown(checked))
    return readable


def markdown(checked: Sequence[CheckedFile]) -> str:
    """A table of all files, and what was found in each."""
    verdicts = Counter(each.verdict.name for each in checked)
    counts = ", ".join(
        f"{verdicts[name]} {name}" for name in ("ready", "ready with care", "not ready")
    )
    lines = [
        "# Bars: what was found",
        "",
        f"{len(checked)} files: {counts}.",
        "",
        "| symbol | bars | first | last | calendar | coverage | missing sessions | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in checked:
        lines.append(
            f"| {each.symbol} | {each.bars:,} of {each.timeframe} | {each.first or ''} | "
            f"{each.last or ''} | {each.calendar or ''} | {100 * each.coverage:.1f} % | "
            f"{each.missing_sessions:,} of {each.sessions:,} | {each.verdict.name} |"
        )
    for each in checked:
        if each.findings:
            lines += ["", f"## {each.symbol} {each.timeframe}: {each.verdict.name}", ""]
            for finding in sorted(each.findings, key=lambda f: SEVERITIES.index(f.severity)):
                such = f" ({', '.join(finding.examples)})" if finding.examples else ""
                lines.append(f"- **{finding.severity}**, {finding.kind}: {finding.text}{such}")
    return "\n".join(lines) + "\n"
