"""gym-trading-env on our bars and features, for Stable-Baselines3."""

# ruff: noqa: TID253 (this room exists for gym-trading-env and what it runs on)

from __future__ import annotations

import importlib
import warnings
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.peers.stable_baselines import MarketExtractor
from jaxtrader.config import TrainingConfig
from jaxtrader.data import Dataset
from jaxtrader.data.markets import split_offset
from jaxtrader.program import trading_params

with warnings.catch_warnings():  # importing it makes every warning of the process an error
    TradingEnv: Any = importlib.import_module("gym_trading_env.environments").TradingEnv

NUM_ACCOUNT = 2  # position taken last and position now: all that it tells of the account


class ColumnsExtractor(MarketExtractor):
    """For observations f32[B, R, F + 2], in which the account stands behind the features."""

    def halves(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return observations[..., :-NUM_ACCOUNT], observations[:, -1, -NUM_ACCOUNT:]


def training_bars(market: Dataset) -> pd.DataFrame:
    """Closes and scaled features of the first symbol's training split, with R - 1 bars before it.

    Of other columns it would copy one value each into the record of every step.
    """
    bars = slice(split_offset(market, "train")[0], market.splits["train"][1][0] + 1)
    names = [f"feature_{name}" for name in market.feature_names]
    features = market.scaler.transform(market.raw_features[0, bars])
    index = pd.to_datetime(market.timestamps[0, bars], unit="us", utc=True)
    frame = pd.DataFrame(features, index.tz_localize(None), names)
    return frame.assign(close=market.close[0, bars])


def environments(market: Dataset, config: TrainingConfig) -> DummyVecEnv:
    """As many as the config has, with as many actions as ours: shares of the account to hold."""
    rules = config.environment
    execution = trading_params(config, market, "train").execution
    fees = execution.cost_multiplier[0] * (execution.commission[0] + execution.slippage[0])
    positions = np.linspace(0.0, rules.position_cap, 7).tolist()
    frame = training_bars(market)

    def make() -> gymnasium.Env[Any, Any]:
        return TradingEnv(
            frame,
            positions=positions,
            windows=config.network.receptive_field,
            trading_fees=fees.item(),
            initial_position=0.0,
            max_episode_duration=rules.episode_length,
            verbose=0,
        )

    return DummyVecEnv([make] * config.ppo.num_envs)
