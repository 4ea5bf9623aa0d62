"""The perfect-foresight ceiling of a program's splits, and an agent's share of it."""

import math
import os
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from reference_simulator import ReferenceSimulator
from small_runs import market, program

from envs.oracle import Grid
from jaxtrader.api import load_market
from jaxtrader.config import TrainingConfig
from jaxtrader.errors import DataError
from jaxtrader.evaluation.foresight import ForesightCeiling, foresight_ceiling
from jaxtrader.program import build_program

DATA_DIR = os.environ.get("JAXTRADER_DATA_DIR")
COARSE = Grid(weights=6, returns=24)


@pytest.fixture(scope="module")
def ceilings():
    return [foresight_ceiling(program(), s, "test", COARSE) for s in range(2)]


def test_there_is_one_ceiling_a_symbol_within_its_bound(ceilings):
    assert [(c.symbol, c.split) for c in ceilings] == [("AAA", "test"), ("BBB", "test")]
    for ceiling in ceilings:
        assert 0 < ceiling.attained < ceiling.bound
        assert ceiling.attained == pytest.approx(ceiling.planned, rel=0.1)


def test_on_the_same_bars_nobody_earns_more(ceilings):
    """Buying at the first bar and holding as long as the rules let it, in the other simulator."""
    dataset = market()
    for s, ceiling in enumerate(ceilings):
        first, last = (int(bars[s]) for bars in dataset.splits["test"])
        bars = slice(0, last + 1)
        simulator = ReferenceSimulator(
            dataset.open[s][bars], dataset.close[s][bars], session=dataset.session[s][bars]
        )
        for action in (1, 2, 3):
            simulator.reset(first, last)
            while not simulator.done:
                simulator.step(action if simulator.shares == 0.0 else 0)
            assert math.log(simulator.equity()) < ceiling.attained


def evaluated(earned: float, symbol: str = "AAA", split: str = "test") -> SimpleNamespace:
    """What the ceiling looks at of an evaluation that earned `earned` in log wealth."""
    return SimpleNamespace(
        symbol=symbol, split=split, equity=pd.Series([5e4, 5e4 * np.exp(earned)])
    )


@pytest.mark.parametrize(
    ("earned", "at_least", "at_most"),
    [
        (0.02, 0.10, 0.20),
        (0.00, 0.00, 0.00),
        (-0.05, -0.50, -0.25),
        (0.15, 0.75, 1.00),  # more than the plan: then that much was possible
    ],
)
def test_the_share_captured_is_known_within_the_bounds_of_the_optimum(earned, at_least, at_most):
    ceiling = ForesightCeiling("AAA", "test", attained=0.1, planned=0.11, bound=0.2)
    assert ceiling.captured(evaluated(earned)) == pytest.approx((at_least, at_most))


def test_a_share_of_nothing_is_undefined():
    nothing = ForesightCeiling("AAA", "test", attained=0.0, planned=0.0, bound=0.1)
    assert all(math.isnan(share) for share in nothing.captured(evaluated(-0.05)))
    assert nothing.captured(evaluated(0.05)) == pytest.approx((0.5, 1.0))


@pytest.mark.parametrize("other", [{"symbol": "BBB"}, {"split": "train"}])
def test_a_ceiling_is_of_one_symbol_and_split(other):
    ceiling = ForesightCeiling("AAA", "test", attained=0.1, planned=0.11, bound=0.2)
    with pytest.raises(DataError, match="says nothing of"):
        ceiling.captured(evaluated(0.1, **other))


def test_a_split_too_long_for_the_grid_is_named():
    with pytest.raises(DataError, match=r"AAA's train split: a plan of .* a coarser Grid"):
        foresight_ceiling(program(), 0, "train", Grid(weights=300, returns=1000))


@pytest.mark.real_data
@pytest.mark.skipif(DATA_DIR is None, reason="JAXTRADER_DATA_DIR is not set")
def test_on_real_bars_the_plan_attains_what_it_expects():
    """And more than holding the benchmark at the largest weight that an agent may have."""
    real = build_program(TrainingConfig(), load_market(DATA_DIR, ["SPY"]))
    ceiling = foresight_ceiling(real, 0, "test")
    assert ceiling.attained == pytest.approx(ceiling.planned, rel=0.02)
    assert ceiling.attained < ceiling.bound
    [first], [last] = real.dataset.splits["test"]
    held = real.dataset.close[0, last] / real.dataset.close[0, first] - 1.0
    assert ceiling.attained > math.log1p(0.2 * max(held, 0.0))
