"""What must be known of a file of bars beyond its numbers, and how it came to be known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Label = Literal["start", "end"]
Prices = Literal["raw", "split_adjusted", "adjusted"]

GIVEN = "given"
ASSUMED = "assumed"


@dataclass(frozen=True)
class Known:
    """A value and how it is known: given, said by the file, known of the vendor, seen, assumed."""

    value: Any
    how: str

    def __str__(self) -> str:
        return f"{self.value} ({self.how})"


@dataclass(frozen=True)
class Conventions:
    """How to read a file's times and prices; None where nothing is known."""

    zone: Known | None = None  # IANA name of the zone of times without an offset
    label: Known | None = None  # whether a time is the "start" or the "end" of its bar
    prices: Known | None = None  # "raw", "split_adjusted", or "adjusted" for dividends too

    def or_else(self, other: Conventions) -> Conventions:
        """These, and the other's where these say nothing."""
        return Conventions(
            self.zone or other.zone, self.label or other.label, self.prices or other.prices
        )
