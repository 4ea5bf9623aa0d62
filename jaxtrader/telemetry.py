"""Episode counters to the metrics of the telemetry table; entropies in nats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from agents.entropy import histogram_entropy
from envs.actions import Action, Reason
from envs.episode import EpisodeStatistics
from envs.reward import RewardComponents

# Metrics that a table of episodes is averaged to, and the columns they are means of.
EPISODE_MEANS = {
    "policy_action_entropy_mean": "policy_action_entropy",
    "executed_action_entropy_mean": "executed_action_entropy",
    "policy_distribution_entropy_mean": "policy_distribution_entropy",
    "voluntary_trade_rate": "voluntary_trade_rate",
    "forced_exit_ratio": "forced_exit_ratio",
    "sanitizer_trade_delta": "sanitizer_trade_delta",
    "action_repeat_violations": "action_repeat_violations",
    "diversity_bonus_mean": "diversity_bonus",
    "unique_actions_mean": "unique_actions",
    "episode_reward_mean": "reward",
    "episode_log_return_mean": "log_return",
    "episode_trades_mean": "closed_trades",
    "long_share_mean": "long_share",
}


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), 0.0)


def episode_table(
    statistics: EpisodeStatistics,
    entropy_sum: np.ndarray,
    weights: RewardComponents,
    frame: Mapping[str, np.ndarray],
) -> pd.DataFrame:
    """One row per finished episode.

    Args:
      statistics: host arrays with leading axis [E].
      entropy_sum: f32[E], sum of the policy's entropies over the episode's steps.
      weights: of the reward components, host scalars.
      frame: columns that identify the episodes, [E] each; they come first.

    Definitions per episode of N steps, policy actions p, executed actions x:

    - policy_action_entropy, executed_action_entropy: of the histograms of p and x.
    - policy_distribution_entropy: mean over steps of the entropy of `pi(.|s)` over legal actions.
    - voluntary_trade_rate, forced_exit_ratio: voluntary and forced exits over their sum, 0 when
      none closed; trades that the end of the episode closed count in neither.
    - sanitizer_trade_delta: (#p != HOLD - #x != HOLD by the policy's own decision) / N, in
      percentage points; forced exits and sales at the episode's end are not the policy's.
    - action_repeat_violations: share of steps whose streak exceeded 3.
    - diversity_bonus: mean over steps, unweighted.
    - reward_<component>: weighted sum over the episode.
    """
    s = statistics
    steps = np.asarray(s.steps)
    policy, executed, reasons = (
        np.asarray(x) for x in (s.policy_counts, s.executed_counts, s.reason_counts)
    )
    policy_trades = steps - policy[:, Action.HOLD]
    forced_or_ended = np.asarray(s.forced_exits) + np.asarray(s.ended_exits)
    own_trades = steps - executed[:, Action.HOLD] - forced_or_ended
    closed = np.asarray(s.voluntary_exits) + np.asarray(s.forced_exits)
    columns = {
        **frame,
        "steps": steps,
        "reward": s.reward,
        "log_return": np.log(np.asarray(s.final_equity, np.float64)),
        "max_drawdown": s.max_drawdown,
        "policy_action_entropy": histogram_entropy(policy),
        "executed_action_entropy": histogram_entropy(executed),
        "policy_distribution_entropy": np.asarray(entropy_sum) / np.maximum(steps, 1),
        "voluntary_trade_rate": _share(np.asarray(s.voluntary_exits), closed),
        "forced_exit_ratio": _share(np.asarray(s.forced_exits), closed),
        "sanitizer_trade_delta": 100.0 * _share(policy_trades - own_trades, steps),
        "action_repeat_violations": _share(np.asarray(s.repeat_violations), steps),
        "diversity_bonus": np.asarray(s.components.diversity_bonus) / np.maximum(steps, 1),
        "unique_actions": (executed > 0).sum(axis=1),
        "closed_trades": closed,
        "voluntary_exits": s.voluntary_exits,
        "forced_exits": s.forced_exits,
        "ended_exits": s.ended_exits,
        "winning_trades": s.winning_trades,
        "gross_profit": s.gross_profit,
        "gross_loss": s.gross_loss,
        "costs": s.costs,
        "traded_value": s.traded_value,
        "long_share": _share(np.asarray(s.long_steps), steps),
        **{f"policy_{action.name}": policy[:, action] for action in Action},
        **{f"executed_{action.name}": executed[:, action] for action in Action},
        **{f"reason_{reason.name}": reasons[:, reason] for reason in Reason},
    }
    for name in weights.names():
        weight = float(getattr(weights, name))
        if weight:
            columns[f"reward_{name}"] = weight * np.asarray(getattr(s.components, name))
            columns[f"magnitude_{name}"] = weight * np.asarray(getattr(s.magnitudes, name))
    return host_table(columns)


def host_table(columns: Mapping[str, object]) -> pd.DataFrame:
    """A table of 64-bit numbers: written as CSV and read back, every bit and type is the same."""
    table = pd.DataFrame({name: np.asarray(column) for name, column in columns.items()})
    wide = dict.fromkeys(table.select_dtypes(np.float32).columns, np.float64)
    wide |= dict.fromkeys(table.select_dtypes(np.int32).columns, np.int64)
    return table.astype(wide)


def episode_means(episodes: pd.DataFrame) -> dict[str, float]:
    """Means over episodes, by the names of `EPISODE_MEANS`; NaN when there are no episodes."""
    return {
        metric: float(episodes[column].mean()) if len(episodes) else float("nan")
        for metric, column in EPISODE_MEANS.items()
    }


def reward_audit(episodes: pd.DataFrame) -> dict[str, object]:
    """Is the reward money? Rank correlation with log return, and each component's share.

    Returns:
      `rank_correlation`: Spearman's, of episode reward with episode log return; None when fewer
      than three episodes or one of the two does not vary. `component_shares`: share of the summed
      absolute weighted components. `dominant`: the component above 60 %, or None; a reward of one
      component is that component by design, so none dominates it.
    """
    magnitudes = {
        name.removeprefix("magnitude_"): float(episodes[name].abs().sum())
        for name in episodes.columns
        if name.startswith("magnitude_")
    }
    total = sum(magnitudes.values())
    shares = {name: value / total if total else 0.0 for name, value in magnitudes.items()}
    varies = len(episodes) >= 3 and min(episodes["reward"].std(), episodes["log_return"].std()) > 0
    correlation = (
        float(episodes["reward"].corr(episodes["log_return"], method="spearman"))
        if varies
        else None
    )
    above = [name for name, share in shares.items() if share > 0.60]
    return {
        "rank_correlation": correlation,
        "component_shares": shares,
        "dominant": above[0] if above and len(shares) > 1 else None,
    }


def audit_warnings(audit: Mapping[str, Any], training: pd.DataFrame) -> list[str]:
    """Signs that the reward is not money.

    Args:
      audit: of `reward_audit`.
      training: the agent's training episodes, in order, or an empty table.

    Returns:
      a sentence for a component that dominates the reward, and one where training raised the
      reward while equity fell: from the first quarter of the episodes to the last, by more than
      two standard errors each.
    """
    found = []
    dominant = audit["dominant"]
    if dominant is not None:
        share = audit["component_shares"][dominant]
        found.append(f"reward component {dominant} makes {share:.0%} of the reward (limit 60 %)")
    quarter = len(training) // 4
    if quarter >= 2:
        early, late = training.head(quarter), training.tail(quarter)
        reward, money = (_change(early[name], late[name]) for name in ("reward", "log_return"))
        if reward > 2.0 and money < -2.0:
            found.append(
                "reward rose in training while equity fell: episode reward "
                f"{early['reward'].mean():.3f} to {late['reward'].mean():.3f}, episode log return "
                f"{early['log_return'].mean():.4%} to {late['log_return'].mean():.4%}"
            )
    return found


def _change(early: pd.Series, late: pd.Series) -> float:
    """Change of the mean in standard errors (Welch 1947); infinite where nothing else varies."""
    a, b = early.to_numpy(np.float64), late.to_numpy(np.float64)
    change = float(b.mean() - a.mean())
    error = math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    return change / error if error > 0.0 else change * math.inf if change else 0.0
