"""`summary.md`: the same figures as `summary.json`, for reading."""

from __future__ import annotations

import math
import shlex
from typing import Any

HEADINGS = {
    "train": "In sample (the train split)",
    "validation": "On the validation split, which chose the checkpoint",
    "test": "Out of sample",
}


CHECKPOINTS_NEEDED = "the checkpoints that an earlier run left in the output folder"


def fresh_command(summary: dict[str, Any]) -> list[str]:
    """The command that computes it all from nothing: a resumed run ends as if never stopped."""
    return [word for word in summary["command"] if word != "--resume"]


def evaluated_span(agents: list[dict[str, Any]]) -> str:
    """Days and number of the bars that the agents were judged on, over all symbols."""
    results = [agent["evaluation"] for agent in agents]
    first = min(result["first_timestamp"] for result in results)[:10]
    last = max(result["last_timestamp"] for result in results)[:10]
    bars = sorted({result["bars"] for result in results})
    count = f"{bars[0]:,}" if len(bars) == 1 else f"{bars[0]:,} to {bars[-1]:,}"
    return f"{first} to {last}, {count} bars"


def _number(value: float | None, form: str = ".3f") -> str:
    return "—" if value is None else format(value, form)


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def render_markdown(summary: dict[str, Any]) -> str:
    """Turns a summary (`build_summary`) into Markdown."""
    data, training, agents = summary["data"], summary["training"], summary["agents"]
    names = [f"{agent['symbol']} seed {agent['seed']}" for agent in agents]
    verdict = "**passed**: every agent passes every gate" if summary["passed"] else "**failed**"
    lines = [
        f"# Stage 5 validation, {summary['created']}",
        "",
        f"Result: {verdict}.",
        "",
        f"Data: **{data['kind'].upper()}**, {data['timeframe']} bars, fingerprint "
        f"`{data['fingerprint'][:16]}`.",
        "",
    ]
    for symbol, origin in data["symbols"].items():
        lines.append(f"- {symbol}: {origin['source']}")
        lines += [
            f"  - {name}: {split['first_timestamp']} to {split['last_timestamp']} "
            f"({split['last_bar'] - split['first_bar'] + 1:,} bars)"
            for name, split in origin["splits"].items()
        ]
    trained = "skipped (existing checkpoints evaluated)" if training["skipped"] else "done"
    lines += [
        "",
        f"Training: {trained}; {training['updates']} updates, {training['steps_per_seed']:,} steps "
        f"per seed, {_number(training['steps_per_second'], ',.0f')} steps/s over all agents.",
        "",
        "## Gates",
        "",
        "On the random-start evaluation episodes of the deterministic policy.",
        "",
    ]
    gate_rows = [
        [
            gate["metric"],
            gate["bound"],
            *(
                f"{_number(agent['gates'][g]['value'])} "
                f"{'pass' if agent['gates'][g]['passed'] else '**FAIL**'}"
                for agent in agents
            ),
        ]
        for g, gate in enumerate(agents[0]["gates"])
    ]
    lines += _table(["gate", "bound", *names], gate_rows)
    lines += [f"## {HEADINGS[agents[0]['evaluation']['split']]}", ""]
    lines += _performance(agents, names)
    lines += _foresight(agents)
    lines += ["## Reward is money?", ""]
    lines += _audit(agents, names)
    lines += ["## Policies", ""]
    lines += _policies(agents, names)
    lines += ["## Warnings", ""]
    warnings = [
        f"- {name}: {warning}"
        for name, agent in zip(names, agents, strict=True)
        for warning in agent["warnings"]
    ]
    lines += [*(warnings or ["none"]), "", "## Reproduce", ""]
    if training["skipped"]:
        lines += [f"Needs {CHECKPOINTS_NEEDED}.", ""]
    lines += ["```", shlex.join(fresh_command(summary)), "```", ""]
    lines += [f"Commit {summary['provenance']['git_commit'] or 'unknown'}.", ""]
    return "\n".join(lines)


def _performance(agents: list[dict[str, Any]], names: list[str]) -> list[str]:
    lines = [
        f"Split `{agents[0]['evaluation']['split']}`, {evaluated_span(agents)}, one "
        "deterministic pass from a flat start, beside buy-and-hold of the same symbol on the same "
        "bars under the same costs. Agents invest at most the position cap; buy-and-hold invests "
        "everything: compare Sharpe ratios before returns.",
        "",
    ]
    header = [
        "", "return", "Sharpe", "max drawdown", "volatility", "trades", "hit rate",
        "profit factor", "mean exposure",
    ]  # fmt: skip

    def row(name: str, total: float, figures: dict[str, Any], trades: str, exposure: str):
        return [
            name,
            f"{total:+.2%}",
            _number(figures["sharpe_ratio"], ".2f"),
            _number(figures["max_drawdown"], ".2%"),
            _number(figures["annual_volatility"], ".2%"),
            trades,
            _number(figures["hit_rate"], ".0%"),
            _number(figures["profit_factor"], ".2f"),
            exposure,
        ]

    rows, shown = [], set()
    for name, agent in zip(names, agents, strict=True):
        result = agent["evaluation"]
        rows.append(
            row(
                name,
                result["total_return"],
                result["performance"],
                str(result["trades"]),
                f"{result['mean_exposure']:.1%}",
            )
        )
        if agent["symbol"] not in shown:
            shown.add(agent["symbol"])
            hold = result["buy_and_hold"]
            label = f"{agent['symbol']} buy and hold"
            rows.append(row(label, hold["total_return"], hold["performance"], "1", "all"))
    return lines + _table(header, rows)


def _foresight(agents: list[dict[str, Any]]) -> list[str]:
    """How much was possible, and how much of it each agent earned."""
    rows = [
        [
            f"{agent['symbol']} seed {agent['seed']}",
            captured(foresight),
            f"{math.expm1(foresight['attained_log_wealth']):+.2%}",
            f"{math.expm1(foresight['bound_log_wealth']):+.2%}",
        ]
        for agent in agents
        if (foresight := agent["evaluation"]["perfect_foresight"])
    ]
    if not rows:
        return []
    lines = [
        "With perfect foresight: what someone who had read these bars could have earned under the "
        "same rules and costs is at least what an optimal plan attained, and at most a bound that "
        "no strategy exceeds. Shares are of log wealth.",
        "",
    ]
    header = ["", "share captured", "attained by the plan", "bound"]
    return lines + _table(header, rows)


def captured(foresight: dict[str, Any]) -> str:
    """The share of perfect foresight's log wealth, as the range in which it is known."""
    low, high = foresight["captured_at_least"], foresight["captured_at_most"]
    if low is None or high is None:
        return "—"
    return f"{low:.1%}" if f"{low:.1%}" == f"{high:.1%}" else f"{low:.1%} to {high:.1%}"


def _audit(agents: list[dict[str, Any]], names: list[str]) -> list[str]:
    rows = []
    for name, agent in zip(names, agents, strict=True):
        audit = agent["evaluation"]["reward_audit"]
        shares = sorted(audit["component_shares"].items(), key=lambda item: -item[1])
        text = ", ".join(f"{component} {share:.0%}" for component, share in shares if share > 0.005)
        rows.append([name, _number(audit["rank_correlation"], ".2f"), text or "—"])
    return _table(["", "rank correlation of reward with log return", "component shares"], rows)


def _policies(agents: list[dict[str, Any]], names: list[str]) -> list[str]:
    rows = []
    for name, agent in zip(names, agents, strict=True):
        policy, checkpoint = agent["policy"], agent["checkpoint"]
        best = f"update {checkpoint['update']} (validation Sharpe "
        best += f"{_number(checkpoint['validation_sharpe'], '.2f')})"
        if policy is None:
            rows.append([name, best, "not exported", "—"])
            continue
        parity = policy["parity"]
        rows.append(
            [
                name,
                best,
                f"`{policy['path']}`",
                f"{'pass' if parity['passed'] else '**FAIL**'}: largest logit difference "
                f"{parity['largest_logit_difference']:.1e} on {parity['observations']:,} "
                "observations",
            ]
        )
    return _table(["", "evaluated checkpoint", "TorchScript file", "parity with JAX"], rows)
