"""An episode up to now as a picture: the price with its fills, the equity, what is invested."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from envs.actions import Action, Reason
from envs.trading import ACCOUNT_FEATURES, Transition
from jaxtrader.adapters.lanes import Snapshot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 640, 480  # pixels
_DPI = 100
_EXPOSURE = ACCOUNT_FEATURES.index("exposure") - len(ACCOUNT_FEATURES)
_LINE, _PAST, _FAINT, _BOUGHT, _SOLD = "#22577a", "0.65", "0.85", "#2a9d4a", "#d1495b"
_CURVE: dict[str, Any] = {"lw": 1.2, "marker": "o", "ms": 3, "markevery": [-1], "clip_on": False}


class EpisodePicture:
    """Follows one account through its episodes; the picture is of the current one.

    It shows no bar before its time.
    """

    def __init__(
        self,
        *,
        symbol: str,
        close: np.ndarray,
        timestamps: np.ndarray,
        history: int,
        episode_length: int,
        fills_next: bool,
    ):
        """Args:
        close, timestamps: [T] of the market's bars, the latter in microseconds since 1970 UTC.
        history: bars to show before an episode's first decision.
        episode_length: steps for which there is room.
        fills_next: whether an order fills in the bar after its decision, or in that bar.
        """
        self._symbol = symbol
        self._close = close
        self._timestamps = timestamps
        self._history = history
        self._episode_length = episode_length
        self._fills_next = fills_next
        self._rows: list[tuple[float, float]] = []  # equity and exposure at each close
        self._fills: list[tuple[int, float, float]] = []  # step, price, shares
        self._start = 0
        self._headline = ""

    @property
    def begun(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self._rows)

    def begin(self, snapshot: Snapshot) -> None:
        """A new episode; `snapshot` is one account's, at its first decision."""
        self._start = int(snapshot.bar)
        self._rows, self._fills = [], []
        self._headline = "start"
        self._add(snapshot)

    def advance(self, action: int, snapshot: Snapshot, transition: Transition) -> None:
        """One step: the policy's action, what it led to and what it did."""
        fill = transition.fill
        if fill.shares != 0:
            step = len(self._rows) - (0 if self._fills_next else 1)
            self._fills.append((step, float(fill.price), float(fill.shares)))
        executed, reason = Action(int(transition.executed)).name, Reason(int(transition.reason))
        self._headline = Action(action).name
        if reason != Reason.NONE:
            self._headline += f" → {executed} ({reason.name})"
        self._add(snapshot)

    def _add(self, snapshot: Snapshot) -> None:
        self._rows.append((float(snapshot.equity), float(snapshot.observation[_EXPOSURE])))

    def draw(self) -> np.ndarray:
        """The picture, uint8[480, 640, 3]."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH / _DPI, HEIGHT / _DPI), dpi=_DPI)
        canvas = FigureCanvasAgg(figure)
        price, account, invested = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1.6, 1))
        figure.subplots_adjust(left=0.11, right=0.97, top=0.87, bottom=0.1, hspace=0.12)
        self._draw_price(price)
        steps = np.arange(len(self._rows))
        equity, exposure = np.array(self._rows).T
        returns = 100 * (equity - 1)
        account.plot(steps, returns, color=_LINE, **_CURVE)
        account.axhline(0, color=_FAINT, lw=0.8, zorder=0)
        invested.fill_between(steps, 100 * exposure, step="pre", color=_LINE, alpha=0.5, lw=1)
        invested.set(ylim=(0, max(10.0, 110 * exposure.max())), xlabel="step")
        labels = ("price", "return, %", "invested, %")
        for axes, label in zip((price, account, invested), labels, strict=True):
            axes.set_ylabel(label)
            axes.yaxis.set_label_coords(-0.085, 0.5)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
            for name in (axes.xaxis.label, axes.yaxis.label):
                name.set_size(8)
        time = np.datetime64(int(self._timestamps[self._bar]), "us").astype("M8[m]")
        heading: dict[str, Any] = {"y": 0.955, "va": "center", "size": 10}
        figure.text(0.11, s=f"{self._symbol}   {str(time).replace('T', ' ')} UTC", **heading)
        figure.text(0.97, s=f"{returns[-1]:+.2f}%", ha="right", weight="bold", **heading)
        figure.text(0.11, 0.905, f"step {steps[-1]}   {self._headline}", va="center", size=8)
        canvas.draw()
        return np.array(canvas.buffer_rgba())[..., :3].copy()

    @property
    def _bar(self) -> int:
        return self._start + len(self._rows) - 1

    def _draw_price(self, axes: Axes) -> None:
        """Up to the last closed bar; a buy points up and a sale points down, at their prices."""
        before = min(self._history - 1, self._start)
        steps = np.arange(-before, len(self._rows))
        close = self._close[self._start + steps]
        axes.plot(steps[: before + 1], close[: before + 1], color=_PAST, lw=1.2)
        axes.plot(steps[before:], close[before:], color=_LINE, **_CURVE)
        axes.axvline(0, color=_FAINT, lw=0.8, zorder=0)
        axes.set_xlim(-before, self._episode_length)
        style: dict[str, Any] = {"s": 38, "clip_on": False, "zorder": 3}
        for marker, color, sign in (("^", _BOUGHT, 1), ("v", _SOLD, -1)):
            fills = [(step, price) for step, price, shares in self._fills if shares * sign > 0]
            if fills:
                axes.scatter(*zip(*fills, strict=True), marker=marker, color=color, **style)
