"""How much of what could have been earned an agent earned: the perfect-foresight ceiling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from envs.oracle import Grid, foresight_bound, perfect_foresight, replay, solve
from jaxtrader.errors import DataError
from jaxtrader.evaluation.evaluate import Evaluation, full_split_bars
from jaxtrader.program import Program


@dataclass(frozen=True)
class ForesightCeiling:
    """The best that someone who has read the bars could have earned on one symbol's full split.

    In log wealth, from cash to cash, under the agents' own rules and costs. The optimum is at
    least `attained` and at most `bound`.
    """

    symbol: str
    split: str
    attained: float  # earned by the oracle's plan, played in the environment with every rule on
    planned: float  # the plan's own figure: the optimum up to interpolation
    bound: float  # no strategy exceeds it

    def captured(self, evaluation: Evaluation) -> tuple[float, float]:
        """Share of the optimum's log wealth that the agent earned on the full split.

        Returns:
          (at least, at most), negative for a loss. They differ because the optimum is known within
          bounds only. NaN where an agent that did not gain has an optimum of zero to compare with.

        Raises:
          DataError: the evaluation is of another symbol or split.
        """
        if (evaluation.symbol, evaluation.split) != (self.symbol, self.split):
            raise DataError(
                f"the ceiling of {self.symbol}'s {self.split} split says nothing of "
                f"{evaluation.symbol}'s {evaluation.split} split"
            )
        earned = math.log(evaluation.equity.iloc[-1] / evaluation.equity.iloc[0])
        # What was earned was possible.
        possible = max(self.attained, earned)
        if possible <= 0.0:
            return math.nan, math.nan
        shares = earned / possible, earned / max(self.bound, possible)
        return min(shares), max(shares)


def foresight_ceiling(
    program: Program, s: int, split: str = "test", grid: Grid | None = None
) -> ForesightCeiling:
    """The ceiling of one symbol's full split, on the bars that `evaluate_agents` plays.

    Args:
      s: place of the symbol in the program's dataset.
      grid: of the oracle's value function; its default by default.

    Raises:
      DataError: the split is too long for the oracle; the message says what to do.
    """
    symbol = program.dataset.symbols[s]
    params = jax.tree.map(lambda x: x[s], program.params[split])
    start, stop = (int(bars[s, 0]) for bars in full_split_bars(program, split))
    outlook = perfect_foresight(params.market, 0, start, stop, params.execution.fill)
    try:
        plan = solve(outlook, params, grid=grid or Grid(max_adds=int(params.limits.max_adds)))
    except ValueError as error:
        raise DataError(f"perfect foresight of {symbol}'s {split} split: {error}") from error
    played = replay(plan, program.learner.env, params, jnp.int32(0), jnp.int32(stop))
    return ForesightCeiling(
        symbol=symbol,
        split=split,
        attained=float(played.log_wealth),
        planned=float(plan.value[0]),
        bound=float(foresight_bound(outlook, params)),
    )
