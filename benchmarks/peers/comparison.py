"""Two contenders timed in turns, so that other work on the machine meets both alike."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jaxtrader.config import TrainingConfig
from jaxtrader.data import Dataset

INSTALL = {
    # Its declared dependencies pin old versions of what only its downloader and its pages use.
    "gym_trading_env": "pip install --no-deps gym-trading-env==0.3.5",
}
EXTRA = "pip install -e '.[peers]' in the checkout"


@dataclass(frozen=True)
class Contender:
    """Something that trains, or only steps environments."""

    advance: Callable[[], int]  # works for a while; returns the environment steps it did
    details: Callable[[], dict[str, float]] = dict  # what there is to know of the last `advance`
    close: Callable[[], None] = lambda: None


Start = Callable[[TrainingConfig, Dataset], Contender]


@dataclass(frozen=True)
class Row:
    """One peer, and what of ours it is compared with."""

    name: str
    ours: Start
    peer: Start
    bar: float | None  # least ratio of ours to the peer's steps a second; None: for information
    differs: tuple[str, ...]  # what, beyond the implementation, is not the same on both sides
    packages: tuple[str, ...] = ()  # modules that the peer is made of

    def missing(self) -> str | None:
        """What to install first, if anything."""
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                return f"not installed: {INSTALL.get(package, EXTRA)}"
        return None


@dataclass
class Measured:
    """Steps a second in each turn; nothing where the peer could not be run."""

    row: Row
    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    details: dict[str, float] = field(default_factory=dict)  # of the peer
    reason: str = ""  # why it could not be run

    @property
    def ratio(self) -> float:
        """Median over turns of ours to the peer's."""
        return statistics.median(a / b for a, b in zip(self.ours, self.peer, strict=True))

    @property
    def met(self) -> bool:
        """Whether the row holds what it should; a row that was not measured does not."""
        return not self.reason and (self.row.bar is None or self.ratio >= self.row.bar)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        measured = not self.reason
        return {
            "name": self.row.name,
            "ours_steps_per_second": statistics.median(self.ours) if measured else None,
            "peer_steps_per_second": statistics.median(self.peer) if measured else None,
            "ratio": self.ratio if measured else None,
            "bar": self.row.bar,
            "met": self.met,
            "differs": list(self.row.differs),
            "peer_details": self.details,
            "turns": {"ours": self.ours, "peer": self.peer},
            "not_measured": self.reason or None,
        }


def compare(
    row: Row, config: TrainingConfig, market: Dataset, repeats: int, seconds: float
) -> Measured:
    """Times both in turns of at least `seconds`, after one uncounted call of each."""
    reason = row.missing()
    if reason is not None:
        return Measured(row, reason=reason)
    measured = Measured(row)
    try:
        peer = row.peer(config, market)
    except ImportError as error:
        return Measured(row, reason=f"cannot be imported: {error}")
    ours = row.ours(config, market)
    try:
        for contender in (ours, peer):
            contender.advance()
        for _ in range(repeats):
            measured.ours.append(_steps_per_second(ours, seconds))
            measured.peer.append(_steps_per_second(peer, seconds))
        measured.details = peer.details()
    finally:
        peer.close()
    return measured


def _steps_per_second(contender: Contender, seconds: float) -> float:
    began = time.perf_counter()
    steps = contender.advance()
    while (now := time.perf_counter() - began) < seconds:
        steps += contender.advance()
    return steps / now
