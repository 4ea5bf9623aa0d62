"""From a trained agent to a policy file, and the proof that the file is that agent."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from agents.learner import Learner
from agents.rollout import collect, start_walkers
from envs.actions import Action
from envs.trading import ACCOUNT_FEATURES, TradingParams
from jaxtrader.data.markets import split_offset
from jaxtrader.placement import Placement, over_agents
from jaxtrader.program import Program
from jaxtrader.provenance import git_commit

if TYPE_CHECKING:  # training needs no torch
    from jaxtrader.export import ParityProcess, ParityReport, PolicyManifest

PARITY_OBSERVATIONS = 10_000


@struct.dataclass
class Observations:
    """What agents saw along stochastic episodes, and what they answered; leading axis [M]."""

    bar: jax.Array  # i32[M] in the split's market
    account: jax.Array  # f32[M, A]
    mask: jax.Array  # bool[M, 7]
    logits: jax.Array  # f32[M, 7]
    value: jax.Array  # f32[M]


@dataclass(frozen=True)
class ExportedPolicy:
    """A policy file with its manifest and the comparison with JAX."""

    path: Path
    manifest: PolicyManifest
    parity: ParityReport


@partial(jax.jit, static_argnames=("learner", "placement", "num_envs", "num_steps"))
def _observe(
    learner: Learner,
    placement: Placement,
    params: Any,
    trading: TradingParams,
    keys: jax.Array,
    num_envs: int,
    num_steps: int,
) -> Observations:
    """`num_steps` steps in each of `num_envs` environments of every agent, [S, K, M, ...]."""
    networks, block = learner.networks.full_precision, learner.shape.block_length
    blocks = num_steps // block

    def agent(agent: tuple[Any, jax.Array], trading: TradingParams) -> Observations:
        params, key = agent
        key_start, key_collect = jax.random.split(key)
        walkers = start_walkers(key_start, learner.env, trading, num_envs, block, recorded_envs=0)
        _, rollout = collect(
            key_collect, networks, params, learner.env, trading, walkers, blocks, block
        )
        bar = rollout.first_bar[:, None] + jnp.arange(block)[:, None]
        table = networks.encode_market(params, trading.market)
        embedding = networks.embedding_at(table, rollout.symbol[:, None], bar)
        logits, value = networks.heads(params, embedding, rollout.account, rollout.mask)

        def flat(x: jax.Array) -> jax.Array:
            return x.reshape(-1, *x.shape[3:])

        return jax.tree.map(flat, Observations(bar, rollout.account, rollout.mask, logits, value))

    return over_agents(agent, placement)((params, keys), trading)


def require_torch() -> None:
    """Tells early whether an export would fail for want of torch.

    Raises:
      ExportError: torch is missing; the message says how to install it.
    """
    import jaxtrader.export

    assert jaxtrader.export.export_policy  # every name in there needs torch


def sample_observations(program: Program, params: Any, split: str, seed: int = 0) -> Observations:
    """At least `PARITY_OBSERVATIONS` observations of every agent on real episodes of `split`.

    Args:
      params: network parameters of all agents, [S, K, ...].

    Returns:
      host arrays [S, K, M, ...].
    """
    episode_length = program.config.environment.episode_length
    num_envs = -(-PARITY_OBSERVATIONS // episode_length)
    symbols, seeds = jax.tree.leaves(params)[0].shape[:2]
    keys = jax.random.split(jax.random.key(seed), (symbols, seeds))
    # The answers that the exported policy is held to are those of full float32.
    with jax.default_matmul_precision("highest"):
        observations = _observe(
            program.learner, program.placement, params, program.params[split], keys, num_envs,
            episode_length,
        )  # fmt: skip
    return jax.device_get(observations)


def export_agent(
    program: Program,
    params: Any,
    observations: Observations,
    s: int,
    k: int,
    path: Path,
    process: ParityProcess,
    *,
    split: str,
    metrics: Mapping[str, Any],
) -> ExportedPolicy:
    """Writes agent (s, k) as TorchScript and replays its observations in a process without JAX.

    Args:
      params: network parameters of all agents, [S, K, ...].
      observations: `sample_observations` of the same parameters and split.
      process: in which the replay runs.
      metrics: what the file says of its out-of-sample performance.

    Raises:
      ExportError: torch is missing, the file cannot be written, or the replay failed.
    """
    from jaxtrader.export import export_policy, write_parity_data

    dataset = program.dataset
    manifest = export_policy(
        path,
        jax.tree.map(lambda x: np.asarray(x[s, k]), params),
        program.config.network,
        feature_names=dataset.feature_names,
        mean=dataset.scaler.mean.tolist(),
        scale=dataset.scaler.scale.tolist(),
        clip=dataset.scaler.clip,
        metadata={
            "action_names": [action.name for action in Action],
            "account_feature_names": list(ACCOUNT_FEATURES),
            "symbol": dataset.symbols[s],
            "training_data_fingerprint": dataset.fingerprint,
            "training_data_kind": dataset.provenance["kind"],
            "settings": program.config.to_dict(),
            "metrics": dict(metrics),
            "git_commit": git_commit(),
        },
    )
    own = jax.tree.map(lambda x: x[s, k], observations)
    history = np.arange(1 - dataset.receptive_field, 1)
    rows = split_offset(dataset, split)[s] + own.bar[:, None] + history
    with tempfile.TemporaryDirectory() as folder:
        recorded = Path(folder) / "observations.npz"
        write_parity_data(
            recorded, dataset.raw_features[s, rows], own.account, own.mask, own.logits, own.value
        )
        return ExportedPolicy(path, manifest, process.check(path, recorded))
