"""Figures as PNG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from jaxtrader.evaluation.evaluate import Evaluation
from jaxtrader.files import write_whole


def equity_figure(evaluations: Sequence[Evaluation], path: Path, title: str) -> None:
    """Equity of every agent of one symbol against buy-and-hold, with drawdowns, out of sample."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    curve, drawdown = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    first = evaluations[0]
    curves = [("buy and hold, fully invested", first.benchmark, {"color": "0.6"})]
    curves += [(f"seed {e.seed}", e.equity, {}) for e in evaluations]
    for label, equity, style in curves:
        curve.plot(equity.index, 100 * (equity / equity.iloc[0] - 1), label=label, lw=1.2, **style)
        fall = 100 * (equity / equity.cummax() - 1)
        drawdown.plot(equity.index, fall, lw=1.0, **style)
    curve.axhline(0, color="0.85", lw=0.8, zorder=0)
    curve.set(title=title, ylabel="return, %")
    curve.legend(frameon=False)
    drawdown.set(ylabel="drawdown, %")
    drawdown.tick_params(axis="x", rotation=30)
    for axes in (curve, drawdown):
        axes.spines[["top", "right"]].set_visible(False)
    image = io.BytesIO()
    figure.savefig(image, dpi=130, format="png")
    write_whole(path, image.getvalue())
