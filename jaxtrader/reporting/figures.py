"""Figures as PNG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from jaxtrader.evaluation.evaluate import Evaluation
from jaxtrader.files import write_whole


def equity_figure(evaluations: Sequence[Evaluation], path: Path, title: str) -> None:
    """One symbol out of sample: buy-and-hold, then every agent's return and invested share.

    The two returns have scales of their own, since agents invest a small part of the account and
    buy-and-hold all of it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    hold, agents, invested = figure.subplots(3, 1, sharex=True, height_ratios=(2, 3, 1.5))
    benchmark = evaluations[0].benchmark
    hold.plot(benchmark.index, 100 * (benchmark / benchmark.iloc[0] - 1), color="0.5", lw=1.2)
    hold.set(title=title, ylabel="buy and hold, %")
    for evaluation in evaluations:
        equity, steps = evaluation.equity, evaluation.steps
        [line] = agents.plot(
            equity.index,
            100 * (equity / equity.iloc[0] - 1),
            label=f"seed {evaluation.seed} ({len(evaluation.trades)} trades)",
            lw=1.2,
        )
        share = 100 * (1 - steps["cash"] / steps["equity"]).clip(lower=0)
        times = equity.index[1 : len(share) + 1]
        invested.step(times, share, where="post", color=line.get_color(), lw=0.8)
    agents.set(ylabel="agents, %")
    agents.legend(frameon=False, ncols=len(evaluations), loc="lower right")
    invested.set(ylabel="invested, %", ylim=(0, None))
    invested.tick_params(axis="x", rotation=20)
    for axes in (hold, agents, invested):
        axes.spines[["top", "right"]].set_visible(False)
        axes.axhline(0, color="0.85", lw=0.8, zorder=0)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=130, format="png")
    write_whole(path, picture.getvalue())
