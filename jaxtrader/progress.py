"""What a person sees while training runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


@dataclass(frozen=True)
class AgentStatus:
    """The latest figures of one agent."""

    episode_return: float  # mean log return of the latest finished episodes, as a fraction
    action_entropy: float  # nats
    guard: str
    validation_sharpe: float


class TrainingProgress:
    """A bar over all updates and a line per agent; on a plain stream, a line every tenth."""

    def __init__(self, total_updates: int, console: Console):
        self._total = total_updates
        self._console = console
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("updates"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("training", total=total_updates, speed="compiling")
        self._live = Live(self._bar, console=console, refresh_per_second=4)
        self._next_line = 0.1

    def __enter__(self) -> TrainingProgress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def show(
        self, update: int, steps_per_second: float, statuses: Mapping[str, AgentStatus]
    ) -> None:
        """Updates the display after `update` updates; the speed is NaN while only compiled."""
        known = math.isfinite(steps_per_second)
        speed = f"{steps_per_second:,.0f} steps/s" if known else "compiled"
        if self._console.is_terminal:
            self._bar.update(self._task, completed=update, speed=speed)
            self._live.update(Group(self._bar, self._table(statuses)))
        elif update >= self._next_line * self._total:
            self._next_line = update / self._total + 0.1
            entropies = ", ".join(
                f"{name}: return {s.episode_return:+.2%} entropy {s.action_entropy:.2f} {s.guard}"
                for name, s in statuses.items()
            )
            line = f"update {update}/{self._total}  {speed}  {entropies}"
            self._console.print(line, highlight=False, soft_wrap=True)

    def _table(self, statuses: Mapping[str, AgentStatus]) -> Table:
        table = Table(box=None, padding=(0, 2))
        for heading in ("agent", "episode return", "action entropy", "validation Sharpe", "guard"):
            table.add_column(heading, justify="left" if heading in ("agent", "guard") else "right")
        for name, status in statuses.items():
            table.add_row(
                name,
                f"{status.episode_return:+.3%}",
                f"{status.action_entropy:.3f}",
                f"{status.validation_sharpe:.2f}",
                status.guard,
            )
        return table
