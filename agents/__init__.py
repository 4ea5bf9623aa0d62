"""How a policy learns: pure functions, arrays in, arrays out."""

from agents.learner import (
    Hyperparameters as Hyperparameters,
)
from agents.learner import (
    Learner as Learner,
)
from agents.learner import (
    TrainState as TrainState,
)
from agents.learner import (
    UpdateMetrics as UpdateMetrics,
)
from agents.networks import ActorCritic as ActorCritic
from agents.networks import NetworkConfig as NetworkConfig
from agents.ppo import PPOParams as PPOParams
from agents.ppo import PPOShape as PPOShape
