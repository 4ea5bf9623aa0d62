"""`report.html`: the whole report on one page that needs no network, for a browser or a phone."""

from __future__ import annotations

import functools
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from envs.actions import Reason
from envs.reward import RewardComponents
from jaxtrader.evaluation.evaluate import Evaluation
from jaxtrader.gates import STAGE5_GATES
from jaxtrader.reporting.markdown import (
    CHECKPOINTS_NEEDED,
    HEADINGS,
    captured,
    evaluated_span,
    fresh_command,
)

if TYPE_CHECKING:
    import jinja2

    from jaxtrader.reporting.charts import Chart

FEW_TRADES = 30
"""Closed trades below which hit rate, profit factor and Sharpe ratio are called unreliable."""


@dataclass(frozen=True)
class Section:
    """What the page says of one symbol."""

    place: int  # from 1; identifies the symbol's elements, since symbols come from outside
    symbol: str
    agents: list[dict[str, Any]]  # of the summary
    seeds: list[tuple[str, str]]  # value and label of each
    times: list[int]  # minutes since 1970 UTC of every bar
    equity: Chart
    price: Chart
    actions: Chart
    reward: Chart
    entropy: Chart
    overrides: list[tuple[str, list[int]]]  # reason, and its count for every agent
    components: list[tuple[str, list[tuple[float, float]]]]  # name; mean and share for every agent


def render_html(
    summary: dict[str, Any],
    evaluations: Sequence[Sequence[Evaluation]],
    updates: pd.DataFrame,
    episodes: pd.DataFrame,
) -> str:
    """Turns a run into one HTML file with everything inside: styles, scripts and data.

    Args:
      summary: of `build_summary`.
      evaluations: by symbol, then by seed, in the summary's order.
      updates: `TrainingRun.updates_table`, or empty.
      episodes: `TrainingRun.episodes_table`, or empty.
    """
    from plotly.offline import get_plotlyjs

    sections = [
        _section(place, summary, row, _of(updates, row[0].symbol), _of(episodes, row[0].symbol))
        for place, row in enumerate(evaluations, start=1)
    ]
    data, environment = summary["data"], summary["config"]["environment"]
    first = summary["agents"][0]["evaluation"]
    symbols = list(data["symbols"])
    return _template().render(
        summary=summary,
        sections=sections,
        kind=f"{data['kind']} data",
        real=data["kind"] == "real",
        verdict=_verdict(summary),
        symbols=", ".join(symbols[:6]) + (f" and {len(symbols) - 6} more" if symbols[6:] else ""),
        seeds=list(dict.fromkeys(agent["seed"] for agent in summary["agents"])),
        heading=HEADINGS[first["split"]],
        span=f"{evaluated_span(summary['agents'])} of {data['timeframe']}, "
        f"the {first['split']} split",
        costs_changed=environment["cost_multiplier"] != 1
        or any(environment[rate] is not None for rate in ("commission", "slippage")),
        gates=STAGE5_GATES,
        cautions=cautions(summary),
        notes=data["notes"]
        + [f"{symbol}: {note}" for symbol in symbols for note in data["symbols"][symbol]["notes"]],
        command=_command(fresh_command(summary)),
        checkpoints_needed=CHECKPOINTS_NEEDED,
        settings=yaml.safe_dump(summary["config"], sort_keys=False),
        plotly=_trusted(get_plotlyjs()),
    )


def cautions(summary: dict[str, Any]) -> list[str]:
    """Reasons to doubt the figures that no gate looks at."""
    agents = summary["agents"]
    split, fill = agents[0]["evaluation"]["split"], summary["config"]["environment"]["fill"]
    figures = [agent["evaluation"]["performance"] for agent in agents]
    found = []
    if split != "test":
        found.append(f"These are not out-of-sample results: {HEADINGS[split].lower()}.")
    if fill == "same_close":
        found.append("Orders filled at a price already seen (same_close), which flatters.")
    # Lo (2002), "The Statistics of Sharpe Ratios": standard error sqrt((1 + SR^2 / 2) / T) of T
    # independent normal returns, here at SR = 0 and annualised.
    margins = [
        (1.96 * math.sqrt(each["periods_per_year"] / each["days"]), each["days"])
        for each in figures
        if each["days"]
    ]
    if margins:
        margin, days = max(margins)
        up_to = "about" if len(set(margins)) == 1 else "up to"
        found.append(
            f"{days} daily returns leave a Sharpe ratio uncertain by {up_to} ±{margin:.1f} (95 %, "
            "were they independent and normal): one inside that margin may be chance."
        )
    trades = {_name(agent): agent["evaluation"]["trades"] for agent in agents}
    idle = [name for name, number in trades.items() if number == 0]
    few = [f"{name} ({number})" for name, number in trades.items() if 0 < number < FEW_TRADES]
    if idle:
        found.append(f"Closed no trade, so its figures say nothing: {_listed(idle)}.")
    if few:
        found.append(
            f"Few closed trades: {_listed(few)}. A Sharpe ratio, a hit rate or a profit factor of "
            f"fewer than {FEW_TRADES} trades means little."
        )
    early = [_name(agent) for agent in agents if agent["evaluation"]["ended_early"]]
    if early:
        found.append(f"Bankruptcy or the drawdown breaker ended the pass early: {_listed(early)}.")
    if len({agent["seed"] for agent in agents}) > 1:
        found.append(
            "All seeds saw the same bars: their agreement speaks for the training, and is still "
            "one look at one market."
        )
    return found


def _section(
    place: int,
    summary: dict[str, Any],
    evaluations: Sequence[Evaluation],
    updates: pd.DataFrame,
    episodes: pd.DataFrame,
) -> Section:
    from jaxtrader.reporting import charts

    symbol, seeds = evaluations[0].symbol, [evaluation.seed for evaluation in evaluations]
    agents = [agent for agent in summary["agents"] if agent["symbol"] == symbol]
    tables = [evaluation.episodes for evaluation in evaluations]
    reasons = [reason.name for reason in Reason if reason is not Reason.NONE]
    counts = {name: [int(table[f"reason_{name}"].sum()) for table in tables] for name in reasons}
    rewarded = charts.rewarded(tables[0])
    shares = [agent["evaluation"]["reward_audit"]["component_shares"] for agent in agents]
    exposure = fmean(agent["evaluation"]["mean_exposure"] for agent in agents)
    zero = [name for name in RewardComponents.names() if name not in rewarded]
    return Section(
        place=place,
        symbol=symbol,
        agents=agents,
        seeds=[(str(seed), str(seed)) for seed in seeds],
        times=(pd.DatetimeIndex(evaluations[0].close.index).as_unit("s").asi8 // 60).tolist(),
        equity=charts.equity_chart(evaluations, exposure),
        price=charts.price_chart(evaluations),
        actions=charts.action_chart(evaluations),
        reward=charts.reward_chart(episodes, seeds, zero),
        entropy=charts.entropy_chart(updates, seeds, summary["config"]["guard"]),
        overrides=sorted(
            ((name, numbers) for name, numbers in counts.items() if any(numbers)),
            key=lambda item: -sum(item[1]),
        ),
        components=[
            (
                name,
                [
                    (float(table[f"reward_{name}"].mean()), share[name])
                    for table, share in zip(tables, shares, strict=True)
                ],
            )
            for name in rewarded
        ],
    )


def _of(table: pd.DataFrame, symbol: str) -> pd.DataFrame:
    return table[table["symbol"] == symbol] if len(table) else table


def _name(agent: dict[str, Any]) -> str:
    return f"{agent['symbol']} seed {agent['seed']}"


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _verdict(summary: dict[str, Any]) -> str:
    agents = summary["agents"]
    if summary["passed"]:
        return "PASSED: every agent passes every gate"
    gated = sum(not all(gate["passed"] for gate in agent["gates"]) for agent in agents)
    if gated:
        return f"FAILED: {gated} of {len(agents)} agents miss at least one gate"
    return "FAILED: a policy was not exported, or does not agree with JAX"


def _command(words: Sequence[str]) -> str:
    """The command for a shell, one option a line."""
    quoted = [shlex.quote(word) for word in words]
    return "".join(f" \\\n  {q}" if q.startswith("--") else f" {q}" for q in quoted).lstrip()


def _number(value: float | None, form: str) -> str:
    return "—" if value is None or not math.isfinite(value) else format(value, form)


def _trusted(text: str) -> Any:
    """Text of ours that goes into the page as it is."""
    from markupsafe import Markup

    return Markup(text)


@functools.cache
def _template() -> jinja2.Template:
    import jinja2

    loader = jinja2.PackageLoader("jaxtrader.reporting", "")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # A number that is not finite is no JSON: the browser would refuse the whole chart.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {
        "name": _name,
        "number": _number,
        "percent": _number,
        "captured": captured,
        "growth": lambda log_wealth: f"{math.expm1(log_wealth):+.2%}",
        "minute": lambda text: text[:16].replace("T", " "),
    }
    for name in ("css", "js"):
        text, *_ = loader.get_source(environment, f"report.{name}")
        environment.globals[name] = _trusted(text)
    return environment.get_template("report.html.j2")
