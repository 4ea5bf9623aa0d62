"""What a check has found, and what follows from it for training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["fatal", "care", "note"]
VerdictName = Literal["ready", "ready with care", "not ready"]


@dataclass(frozen=True)
class Limits:
    """Where a finding begins, and where training ends. Shares are of bars or sessions, 0 to 1."""

    minimum_bars: int = 1_000  # fewer leave splits of no use
    coverage: float = 0.98  # of the bars that the calendar expects; below it takes care
    least_coverage: float = 0.80  # below it, no training
    longest_hole: int = 10  # sessions in a row; a longer one is no overnight any more
    outside: float = 0.01  # of bars, outside sessions; above it takes care
    zero_volume: float = 0.05  # of bars; above it takes care
    stale_bars: int = 5  # in a row, without any movement
    outlier: float = 0.4  # log return of a bar; and 15 times the usual one
    bad_print: float = 0.02  # log return of a bar that the next takes back; and 8 times the usual
    volume_step: float = 5.0  # between the medians of 20 sessions before and after
    source_step: float = 1.25  # the same, where the source changes


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing, about a file."""

    kind: str
    severity: Severity
    count: int  # of bars, sessions or places, as the text says
    text: str  # what, and what to do about it
    examples: tuple[str, ...] = ()  # times in UTC, or days

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "count": self.count,
            "text": self.text,
            "examples": list(self.examples),
        }


@dataclass(frozen=True)
class Verdict:
    """Whether a file is fit for training, and why not."""

    name: VerdictName
    reasons: tuple[str, ...]

    @classmethod
    def of(cls, findings: list[Finding]) -> Verdict:
        """Fatal findings forbid training, those that take care are reasons for it."""
        verdicts: tuple[tuple[Severity, VerdictName], ...] = (
            ("fatal", "not ready"),
            ("care", "ready with care"),
        )
        for severity, name in verdicts:
            reasons = tuple(each.text for each in findings if each.severity == severity)
            if reasons:
                return cls(name, reasons)
        return cls("ready", ())
