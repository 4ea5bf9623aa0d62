"""The charts of `report.html`, as Plotly figures: one symbol each, its agents told apart by seed.

A trace whose `meta` names a choice of the page, such as `{"seed": "42"}`, is shown while that is
chosen. One with `{"clock": true}` gets the times of its bars as text: time axes count bars, so that
nights, weekends and holidays take no room, and `report.js` puts the dates to them.

No text from outside (symbols, paths) enters a figure: Plotly reads text as markup.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from envs.actions import END_REASONS, FORCED_REASONS, Action, Reason
from jaxtrader.evaluation.evaluate import Evaluation

POINTS = 4_000
"""Most points of a line; a longer one is drawn by its `extremes`."""

BINS = 30
"""Most bars into which training is cut."""

# Okabe and Ito (2008), "Color Universal Design": told apart under every colour blindness. In an
# order in which the first ones are legible on white and on black.
_BLUE, _VERMILLION, _GREEN = "#0072B2", "#D55E00", "#009E73"
_PURPLE, _ORANGE, _SKY, _YELLOW, _GREY = "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#8A8A8A"
_COLOURS = (_BLUE, _VERMILLION, _GREEN, _PURPLE, _ORANGE, _SKY)
_DASHES = ("solid", "dash", "dot", "dashdot")
_COMPONENT_COLOURS = (*_COLOURS, _YELLOW, _GREY)


@dataclass(frozen=True)
class Chart:
    """A figure and the words around it."""

    name: str  # tells it from the other charts of its symbol
    title: str
    caption: str  # what to look for; or why there is nothing to see
    figure: dict[str, Any] | None = None  # Plotly's JSON; None where there is nothing to draw
    x: str = ""  # what x counts: "bars" of the evaluated split, "steps", or nothing to zoom into


def extremes(values: np.ndarray, points: int) -> np.ndarray:
    """Positions of at most `points` of `values`, in order; all when there are no more than that.

    The lowest and the highest value of every stretch are kept, and both ends, so that no peak and
    no drawdown is lost. Source: Jugel et al. (2014), "M4: A Visualization-Oriented Time Series Data
    Aggregation", VLDB 7, without its first and last value of every stretch.
    """
    if len(values) <= points:
        return np.arange(len(values))
    kept = {0, len(values) - 1}
    for stretch in np.array_split(np.arange(len(values)), points // 2 - 1):
        kept |= {int(stretch[values[stretch].argmin()]), int(stretch[values[stretch].argmax()])}
    return np.array(sorted(kept))


def equity_chart(evaluations: Sequence[Evaluation], exposure: float) -> Chart:
    """Return and drawdown at every bar, buy-and-hold beside the agents.

    Args:
      exposure: share of the account that the agents had invested on average.
    """
    benchmark = evaluations[0].benchmark
    clock = extremes(benchmark.to_numpy(), POINTS)
    traces: list[go.Scatter] = [
        go.Scatter(
            x=clock.tolist(), y=np.zeros(len(clock), np.int8), name="cash",
            line={"color": _GREY, "width": 0.8}, showlegend=False,
            hovertemplate="%{text}<extra></extra>", meta={"clock": True},
        )
    ]  # fmt: skip
    curves = [
        ("buy and hold", benchmark, {"color": _GREY, "width": 1.4}, {"scale": "same"}),
        *(
            (f"seed {e.seed}", e.equity, {**_line(k), "width": 1.6}, None)
            for k, e in enumerate(evaluations)
        ),
    ]
    for name, equity, line, meta in curves:
        growth = 100 * (equity / equity.iloc[0] - 1).to_numpy()
        fall = 100 * (equity / equity.cummax() - 1).to_numpy()
        for values, axis, what in ((growth, "y", ""), (fall, "y2", "drawdown ")):
            at = extremes(values, POINTS)
            traces.append(
                go.Scatter(
                    x=_small(at), y=values[at].astype(np.float32), yaxis=axis, name=name,
                    legendgroup=name, showlegend=axis == "y", line=line, meta=meta,
                    hovertemplate=f"{what}%{{y:.2f}} %<extra>{name}</extra>",
                )
            )  # fmt: skip
    figure = _figure(
        traces,
        height=520,
        hovermode="x unified",
        hoversubplots="axis",
        xaxis=_bars(len(benchmark), anchor="y2", unifiedhovertitle={"text": "bar %{x}"}),
        yaxis=_percent("return", domain=[0.36, 1]),
        yaxis2=_percent("drawdown", domain=[0, 0.30]),
    )
    return Chart(
        "equity",
        "Equity and drawdown",
        "Does a coloured line end above the grey one, and with smaller falls? The agents had "
        f"{exposure:.1%} of the account invested on average and buy-and-hold all of it, so compare "
        "the shapes before the heights. Figures are per bar; the table's drawdown is that of daily "
        "closes." + _thinned(len(benchmark), "bars"),
        figure,
        x="bars",
    )


def price_chart(evaluations: Sequence[Evaluation]) -> Chart:
    """The price, and where each agent bought and sold."""
    close = evaluations[0].close
    at = extremes(close.to_numpy(), POINTS)
    traces = [
        go.Scatter(
            x=at.tolist(), y=close.to_numpy()[at].astype(np.float32), name="close",
            line={"color": _GREY, "width": 1.2}, showlegend=False, meta={"clock": True},
            hovertemplate=f"%{{text}}<br>close %{{y:{_price_format(close)}}}<extra></extra>",
        )
    ]  # fmt: skip
    for evaluation in evaluations:
        traces += _marks(evaluation)
    idle = [str(e.seed) for e in evaluations if not e.steps["fill_shares"].any()]
    none = f" Seed {', '.join(idle)} never traded." if idle else ""
    figure = _figure(
        traces,
        height=460,
        hovermode="closest",
        xaxis=_bars(len(close)),
        yaxis={"title": {"text": "price, $"}, "fixedrange": True},
    )
    return Chart(
        "price",
        "Price and trades",
        "Are the upward triangles (buys) below the downward ones (sales) that follow? A mark is as "
        "large as the money traded and stands at its fill price, on or off the line of closes. "
        f"Forced sales were not the policy's wish.{none}" + _thinned(len(close), "bars"),
        figure,
        x="bars",
    )


def action_chart(evaluations: Sequence[Evaluation]) -> Chart:
    """Shares of the seven actions, as the policy chose them and as they were executed."""
    names = [action.name for action in Action]
    traces = []
    for evaluation in evaluations:
        episodes = evaluation.episodes
        steps = max(int(episodes["steps"].sum()), 1)
        for kind, colour in (("policy", _BLUE), ("executed", _ORANGE)):
            share = np.array([100 * episodes[f"{kind}_{name}"].sum() / steps for name in names])
            traces.append(
                go.Bar(
                    x=share.astype(np.float32), y=names, orientation="h", name=kind,
                    marker={"color": colour}, meta={"seed": str(evaluation.seed)},
                    texttemplate="%{x:.1f} %", textposition="outside", cliponaxis=False,
                    hovertemplate="%{x:.2f} %<extra>" + kind + " %{y}</extra>",
                )
            )  # fmt: skip
    figure = _figure(
        traces,
        height=440,
        barmode="group",
        bargap=0.25,
        # The first trace of a pair lies lowest, so both are turned around.
        legend={"traceorder": "normal"},
        xaxis={"title": {"text": "share of steps, %"}, "range": [0, 118], "fixedrange": True},
        yaxis={"autorange": "reversed", "fixedrange": True},
    )
    return Chart(
        "actions",
        "Actions: what the policy chose, and what was executed",
        "Where the two bars of an action differ, the sanitizer or a forced exit had the last word; "
        "one bar near 100 % is a collapsed policy. Steps of the "
        f"{len(evaluations[0].episodes)} random-start evaluation episodes that the gates judge.",
        figure,
    )


def reward_chart(episodes: pd.DataFrame, seeds: Sequence[int], zero: Sequence[str]) -> Chart:
    """Reward of the training episodes by component, over training.

    Args:
      episodes: of one symbol, all seeds.
      zero: names of the components whose weight is 0.
    """
    title = "Reward by component, over training"
    without = f" Weight 0, hence no part of it: {', '.join(zero)}." if zero else ""
    if not len(episodes):
        return Chart("reward", title, "No training episode is on record." + without)
    components = rewarded(episodes)
    span = int(episodes["update"].max())
    width = math.ceil(span / BINS)
    traces = []
    for seed in seeds:
        own = episodes[episodes["seed"] == seed]
        if not len(own):
            continue
        by_bin = own.groupby((own["update"] - 1) // width)
        means = by_bin[["reward", *(f"reward_{c}" for c in components)]].mean()
        x = by_bin["steps_done"].max().to_numpy(np.float64)
        for c, component in enumerate(components):
            traces.append(
                go.Bar(
                    x=x, y=means[f"reward_{component}"].to_numpy(np.float32), name=component,
                    marker={"color": _COMPONENT_COLOURS[c % len(_COMPONENT_COLOURS)]},
                    hovertemplate="%{y:.3f}<extra>" + component + "</extra>",
                    meta={"seed": str(seed)},
                )
            )  # fmt: skip
        traces.append(
            go.Scatter(
                x=x, y=means["reward"].to_numpy(np.float32), name="reward, after clipping",
                mode="lines+markers", line={"color": _GREY, "width": 2}, marker={"size": 6},
                meta={"seed": str(seed)}, hovertemplate="%{y:.3f}<extra>reward</extra>",
            )
        )  # fmt: skip
    figure = _figure(
        traces,
        height=480,
        barmode="relative",
        bargap=0.05,
        hovermode="x unified",
        xaxis={"title": {"text": "environment steps"}},
        yaxis={"title": {"text": "per episode"}, "fixedrange": True},
    )
    missing = [str(seed) for seed in seeds if not (episodes["seed"] == seed).any()]
    none = f" No training episode of seed {', '.join(missing)} is on record." if missing else ""
    averaged = f"each {width} updates" if width > 1 else "each update"
    return Chart(
        "reward",
        title,
        "Does the reward rise, and because of profit or of a side payment? Bars stack the weighted "
        f"components, means over the training episodes of {averaged}." + without + none,
        figure,
        x="steps",
    )


def rewarded(episodes: pd.DataFrame) -> list[str]:
    """Names of the reward components in a table of episodes: those that have a weight."""
    columns = [str(column) for column in episodes.columns]
    return [name.removeprefix("reward_") for name in columns if name.startswith("reward_")]


def entropy_chart(updates: pd.DataFrame, seeds: Sequence[int], guard: dict[str, Any]) -> Chart:
    """Entropy of the actions over training, with what the entropy guard did.

    Args:
      updates: of one symbol, all seeds.
      guard: settings of the guard.
    """
    title = "Entropy over training"
    if not len(updates):
        return Chart("entropy", title, "No record of training is at hand.")
    lines, marks = [], []
    for k, seed in enumerate(seeds):
        own = updates[updates["seed"] == seed]
        if len(own):
            lines += _entropy_lines(own, seed, _line(k))
            marks += _guard_marks(own, seed, _line(k)["color"])
    level, grey = guard["threshold"], {"color": _GREY, "width": 1.2, "dash": "dash"}
    label = {"text": f"guard, {level:g}", "textposition": "end", "yanchor": "bottom"}
    threshold = {
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": level, "y1": level,
        "line": grey, "label": {**label, "font": {"size": 12}},
    }  # fmt: skip
    figure = _figure(
        [*lines, *marks],
        height=440,
        shapes=[threshold] if guard["enabled"] else [],
        xaxis={"title": {"text": "environment steps of a seed"}},
        yaxis={"title": {"text": "nats"}, "range": [0, 2], "fixedrange": True},
    )
    return Chart(
        "entropy",
        title,
        "Solid is the policy's choice, dotted what was executed; seven equally frequent actions "
        f"have {math.log(len(Action)):.3f} nats, a single one 0. A line that sinks to the guard's "
        f"is a policy collapsing onto few actions. {_guard_words(updates, guard['enabled'])}"
        + _thinned(updates["update"].nunique(), "updates"),
        figure,
        x="steps",
    )


def _entropy_lines(updates: pd.DataFrame, seed: int, line: dict[str, str]) -> list[go.Scatter]:
    steps = updates["steps"].to_numpy(np.float64)
    traces = []
    for kind, style in (("policy", {"width": 1.8}), ("executed", {"width": 1, "dash": "dot"})):
        values = updates[f"{kind}_action_entropy"].to_numpy()
        at = extremes(values, POINTS)
        traces.append(
            go.Scatter(
                x=steps[at], y=values[at].astype(np.float32), name=f"seed {seed}",
                legendgroup=str(seed), showlegend=kind == "policy", line={**line, **style},
                mode="lines+markers" if len(at) < 3 else "lines",
                hovertemplate=f"{kind} %{{y:.3f}} nats<extra>seed {seed}</extra>",
            )
        )  # fmt: skip
    return traces


def _guard_marks(updates: pd.DataFrame, seed: int, colour: str) -> list[go.Scatter]:
    """Where the guard stepped in, and where the seed was halted."""
    triggered = updates[updates["guard_triggered"].astype(bool)]
    halted = updates[updates["halt"] != 0].head(1)
    edge = {"width": 1.5, "color": "#FFFFFF"}
    return [
        go.Scatter(
            x=rows["steps"].to_numpy(np.float64),
            # A loss that is not finite halts a seed, and may leave no entropy to stand at.
            y=rows["executed_action_entropy"].fillna(0.0).to_numpy(np.float32),
            name=f"{what}, seed {seed}", mode="markers", legendgroup=str(seed),
            marker={"symbol": symbol, "size": 13, "color": colour, "line": edge},
            hovertemplate=f"{what} at %{{x:,.0f}} steps<extra>seed {seed}</extra>",
        )
        for rows, symbol, what in ((triggered, "triangle-up", "guard"), (halted, "x", "halted"))
        if len(rows)
    ]  # fmt: skip


def _guard_words(updates: pd.DataFrame, enabled: bool) -> str:
    times = int(updates["guard_triggered"].astype(bool).sum())
    did = f"The guard stepped in {times} time{'s' * (times != 1)} (triangles)."
    if not times:
        did = "The guard never had to step in." if enabled else "The guard was switched off."
    halted = updates.loc[updates["halt"] != 0, "seed"].unique()
    return did + (f" Halted (crosses): seed {', '.join(map(str, halted))}." if len(halted) else "")


def _figure(traces: Sequence[Any], *, height: int, **layout: Any) -> dict[str, Any]:
    """Plotly's JSON of a figure; the page gives it colours and fonts."""
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    layout["legend"] = {**legend, **layout.get("legend", {})}
    margin = {"l": 8, "r": 8, "t": 8, "b": 8}
    figure = go.Figure(
        list(traces),
        {"height": height, "margin": margin, "template": go.layout.Template(), **layout},
    )
    return figure.to_dict()


def _line(k: int) -> dict[str, str]:
    """Colour of the k-th seed, and a dash once colours repeat."""
    dash = _DASHES[k // len(_COLOURS) % len(_DASHES)]
    return {"color": _COLOURS[k % len(_COLOURS)], "dash": dash}


def _bars(number: int, **axis: Any) -> dict[str, Any]:
    """An x axis of that many bars and a little room for marks at its ends."""
    margin = 0.015 * number
    return {"minallowed": -margin, "maxallowed": number - 1 + margin, **axis}


def _percent(title: str, **axis: Any) -> dict[str, Any]:
    return {"title": {"text": f"{title}, %"}, "fixedrange": True, **axis}


def _small(positions: np.ndarray) -> np.ndarray:
    """The smallest integers that hold the positions: half the size in the file."""
    return positions.astype(np.int16 if positions[-1] < 2**15 else np.int32)


def _thinned(length: int, of: str) -> str:
    if length <= POINTS:
        return ""
    return (
        f" Of {length:,} {of}, every line shows the lowest and the highest value of each stretch "
        f"of {length // (POINTS // 2 - 1) + 1}."
    )


def _price_format(close: pd.Series) -> str:
    return ",.2f" if close.median() >= 1 else ".6f"


# name, symbol, colour of the marks of fills.
_MARKS = {
    "buy": ("triangle-up", _BLUE),
    "add": ("diamond", _SKY),
    "partial sale": ("triangle-down-open", _ORANGE),
    "sale": ("triangle-down", _ORANGE),
    "forced sale": ("x", _VERMILLION),
    "sale at the end": ("square", _GREY),
}


def _mark(executed: str, reason: str) -> str:
    if Reason[reason] in FORCED_REASONS:
        return "forced sale"
    if Reason[reason] in END_REASONS:
        return "sale at the end"
    names = {Action.ADD_POSITION: "add", Action.SELL_PARTIAL: "partial sale"}
    return names.get(Action[executed], "sale" if executed == Action.SELL_ALL.name else "buy")


def _marks(evaluation: Evaluation) -> list[go.Scatter]:
    """One trace of marks for each kind of fill that happened."""
    fills = evaluation.steps[evaluation.steps["fill_shares"] != 0]
    kinds = np.array(
        [_mark(*pair) for pair in zip(fills["executed"], fills["reason"], strict=True)]
    )
    bars = evaluation.close.index.get_indexer(pd.DatetimeIndex(fills["fill_time"]))
    value = fills["fill_value"].abs().to_numpy()
    size = 7 + 9 * np.sqrt(value / value.max()) if len(value) else value
    text = np.array([_fill_text(fill) for fill in fills.itertuples()])
    traces = []
    for kind, (symbol, colour) in _MARKS.items():
        of = kinds == kind
        if of.any():
            traces.append(
                go.Scatter(
                    x=_small(bars[of]), y=fills["fill_price"].to_numpy(np.float32)[of],
                    name=f"{kind} ({of.sum()})", mode="markers",
                    meta={"seed": str(evaluation.seed)},
                    marker={"symbol": symbol, "color": colour, "size": size[of].astype(np.float32),
                            "opacity": 0.9, "line": {"width": 1.2}},
                    text=text[of].tolist(), hovertemplate="%{text}<extra></extra>",
                )
            )  # fmt: skip
    return traces


def _fill_text(fill: Any) -> str:
    """What happened in one fill: every word is one of our own enumerations or a number."""
    lines = [
        f"{fill.fill_time:%Y-%m-%d %H:%M} UTC",
        f"{fill.executed}: {abs(fill.fill_shares):,.4g} shares at ${fill.fill_price:,.6g}",
        f"${abs(fill.fill_value):,.2f}, costs ${fill.costs:,.2f}",
    ]
    if fill.reason != Reason.NONE.name:
        lines.append(f"by {fill.reason}")
    if fill.closed:
        lines.append(f"trade closed, profit ${fill.trade_profit:+,.2f}")
    return "<br>".join(lines)
