"""How a policy learns: pure functions, arrays in, arrays out."""

from agents.learner import (
    Hyperparameters as Hyperparameters,
    Learner as Learner,
    TrainState as TrainState,
    UpdateMetrics as UpdateMetrics,
)
from agents.networks import ActorCritic as ActorCritic, NetworkConfig as NetworkConfig
from agents.ppo import PPOParams as PPOParams, PPOShape as PPOShape
