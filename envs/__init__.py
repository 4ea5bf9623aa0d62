"""What the market does to a trade: pure functions, arrays in, arrays out."""

from envs.actions import (
    NUM_ACTIONS as NUM_ACTIONS,
)
from envs.actions import (
    Action as Action,
)
from envs.actions import (
    Directives as Directives,
)
from envs.actions import (
    Reason as Reason,
)
from envs.actions import (
    TradingLimits as TradingLimits,
)
from envs.actions import (
    neutral_directives as neutral_directives,
)
from envs.actions import (
    trading_limits as trading_limits,
)
from envs.curriculum import (
    StartDistribution as StartDistribution,
)
from envs.curriculum import (
    start_distribution as start_distribution,
)
from envs.episode import EpisodeStatistics as EpisodeStatistics
from envs.execution import (
    ExecutionParams as ExecutionParams,
)
from envs.execution import (
    Fill as Fill,
)
from envs.execution import (
    execution_params as execution_params,
)
from envs.market import Market as Market
from envs.position import Account as Account
from envs.position import Position as Position
from envs.reward import (
    RewardComponents as RewardComponents,
)
from envs.reward import (
    RewardFunction as RewardFunction,
)
from envs.reward import (
    RewardParams as RewardParams,
)
from envs.reward import (
    RewardStep as RewardStep,
)
from envs.reward import (
    reward_params as reward_params,
)
from envs.trading import (
    TradingEnv as TradingEnv,
)
from envs.trading import (
    TradingParams as TradingParams,
)
from envs.trading import (
    TradingState as TradingState,
)
from envs.trading import (
    Transition as Transition,
)
