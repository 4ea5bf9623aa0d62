"""What the market does to a trade: pure functions, arrays in, arrays out."""

from envs.actions import (
    NUM_ACTIONS as NUM_ACTIONS,
    Action as Action,
    Directives as Directives,
    Reason as Reason,
    TradingLimits as TradingLimits,
    neutral_directives as neutral_directives,
    trading_limits as trading_limits,
)
from envs.curriculum import (
    StartDistribution as StartDistribution,
    start_distribution as start_distribution,
)
from envs.episode import EpisodeStatistics as EpisodeStatistics
from envs.execution import (
    ExecutionParams as ExecutionParams,
    Fill as Fill,
    execution_params as execution_params,
)
from envs.market import Market as Market
from envs.position import Account as Account, Position as Position
from envs.reward import (
    RewardComponents as RewardComponents,
    RewardParams as RewardParams,
    reward_params as reward_params,
)
from envs.trading import (
    TradingEnv as TradingEnv,
    TradingParams as TradingParams,
    TradingState as TradingState,
    Transition as Transition,
)
