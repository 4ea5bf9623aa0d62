"""Proximal policy optimisation (Schulman et al. 2017) on blocks of contiguous bars."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree

from agents.advantages import gae
from agents.networks import ActorCritic, Params, entropy, log_prob
from agents.passes import in_passes
from agents.rollout import Rollout
from envs.market import Market


@struct.dataclass
class PPOParams:
    """Rates and coefficients: traced, so a change recompiles nothing. f32[] unless said."""

    learning_rate: jax.Array
    final_learning_rate: jax.Array  # reached linearly at the end of training
    discount: jax.Array  # gamma
    trace_decay: jax.Array  # lambda
    clip_ratio: jax.Array
    value_coef: jax.Array
    max_grad_norm: jax.Array  # of the global norm
    target_kl: jax.Array  # no further minibatch of this update once exceeded; inf: never


@dataclass(frozen=True)
class PPOShape:
    """Counts and switches: static."""

    num_envs: int
    num_blocks: int  # blocks per rollout; rollout_steps = num_blocks * block_length
    block_length: int  # contiguous steps encoded in one pass
    num_epochs: int
    blocks_per_minibatch: int
    normalize_rewards: bool
    env_shards: int = 1  # groups of environments that give every minibatch equal parts
    passes: int = 1  # equal parts of a minibatch that go through the networks one after the other

    def __post_init__(self) -> None:
        if self.num_envs * self.num_blocks % self.blocks_per_minibatch:
            raise ValueError(
                f"{self.num_envs} environments x {self.num_blocks} blocks cannot be dealt into "
                f"minibatches of {self.blocks_per_minibatch} blocks"
            )
        if self.num_envs % self.env_shards or self.blocks_per_minibatch % self.env_shards:
            raise ValueError(
                f"{self.num_envs} environments and minibatches of {self.blocks_per_minibatch} "
                f"blocks cannot be dealt into {self.env_shards} equal groups"
            )
        if self.blocks_per_minibatch // self.env_shards % self.passes:
            raise ValueError(
                f"minibatches of {self.blocks_per_minibatch} blocks in {self.env_shards} groups "
                f"cannot be dealt into {self.passes} equal passes"
            )

    @property
    def rollout_steps(self) -> int:
        return self.num_blocks * self.block_length

    @property
    def steps_per_update(self) -> int:
        return self.num_envs * self.rollout_steps

    @property
    def minibatches(self) -> int:
        """Per epoch."""
        return self.num_envs * self.num_blocks // self.blocks_per_minibatch


@struct.dataclass
class Blocks:
    """B blocks of C contiguous steps of one environment each: what a minibatch is made of."""

    symbol: jax.Array  # i32[B]
    first_bar: jax.Array  # i32[B]
    account: jax.Array  # f32[B, C, A]
    mask: jax.Array  # bool[B, C, 7]
    action: jax.Array  # i32[B, C]
    log_prob: jax.Array  # f32[B, C] under the policy that acted
    advantage: jax.Array  # f32[B, C]
    returns: jax.Array  # f32[B, C]


@struct.dataclass
class LossParts:
    """Means over a minibatch, or over the minibatches of an update; f32[] each."""

    policy_loss: jax.Array
    value_loss: jax.Array
    entropy: jax.Array  # of the policy's distribution, nats
    approx_kl: jax.Array  # Schulman's k3 estimator of KL(old || new)
    clip_fraction: jax.Array
    grad_norm: jax.Array


def steps_first(x: jax.Array) -> jax.Array:
    """[K, C, N, ...] to [K * C, N, ...], the time axis that GAE walks."""
    return x.reshape(-1, *x.shape[2:])


def advantages_and_returns(
    rollout: Rollout, rewards: jax.Array, params: PPOParams
) -> tuple[jax.Array, jax.Array]:
    """GAE over a rollout with (possibly normalised) `rewards` f32[K, C, N]; same shape back."""
    # An episode is cut only in a block's last step, so one bootstrap value a block is enough.
    # Were it not so, the NaN would halt the agent instead of passing for a value.
    final_values = jnp.full_like(rewards, jnp.nan).at[:, -1].set(rollout.final_value)
    advantages, returns = gae(
        steps_first(rewards),
        steps_first(rollout.value),
        steps_first(rollout.terminated),
        steps_first(rollout.truncated),
        steps_first(final_values),
        rollout.last_value,
        params.discount,
        params.trace_decay,
    )
    return advantages.reshape(rewards.shape), returns.reshape(rewards.shape)


def to_blocks(
    rollout: Rollout, advantages: jax.Array, returns: jax.Array, groups: int = 1
) -> Blocks:
    """Rearranges a rollout of [K, C, N] into K * N blocks of C steps.

    Those of a group of N / `groups` environments stand together, as they lie on one device.
    """

    def grouped(x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
        return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[3:])

    def deal(x: jax.Array) -> jax.Array:
        return grouped(jnp.swapaxes(x, 1, 2))

    return Blocks(
        symbol=grouped(rollout.symbol),
        first_bar=grouped(rollout.first_bar),
        account=deal(rollout.account),
        mask=deal(rollout.mask),
        action=deal(rollout.action),
        log_prob=deal(rollout.log_prob),
        advantage=deal(advantages),
        returns=deal(returns),
    )


def standardized(advantage: jax.Array) -> jax.Array:
    """A minibatch's advantages less their mean, over their standard deviation; same shape."""
    return (advantage - advantage.mean()) / (advantage.std() + 1e-8)


def ppo_loss(
    params: Params,
    networks: ActorCritic,
    market: Market,
    blocks: Blocks,
    ppo: PPOParams,
    entropy_coef: jax.Array,
    table: jax.Array | None = None,
    passes: int = 1,
) -> tuple[jax.Array, LossParts]:
    """Clipped surrogate, value error and entropy bonus over one minibatch.

    Args:
      blocks: with standardised advantages.
      table: the market's embeddings, where the encoder is frozen and they have been made already.
      passes: static; into which the blocks are dealt, see `in_passes`.

    Returns:
      (loss f32[], parts); `parts.grad_norm` is 0 here and filled in by the optimiser's step.
    """
    num_blocks, length = blocks.action.shape
    embedding = None
    if table is not None or networks.table_is_less(market, num_blocks, length):
        encode = networks.block_encoder(params, market, num_blocks, length, table)
        embedding = encode(blocks.symbol, blocks.first_bar)
    coefficients = (ppo.clip_ratio, ppo.value_coef, entropy_coef)
    loss, rest = partial(_loss, networks), (market, coefficients)
    if passes == 1:
        return loss(params, embedding, blocks, *rest)
    return in_passes(loss, passes, params, embedding, blocks, rest)


def _loss(
    networks: ActorCritic,
    params: Params,
    embedding: jax.Array | None,
    blocks: Blocks,
    market: Market,
    coefficients: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, LossParts]:
    """`ppo_loss` in one pass.

    Args:
      embedding: f32[B, C, D]; None: to be made here.
      coefficients: clip ratio, value coefficient, entropy coefficient.
    """
    clip_ratio, value_coef, entropy_coef = coefficients
    if embedding is None:
        num_blocks, length = blocks.action.shape
        encode = networks.block_encoder(params, market, num_blocks, length)
        embedding = encode(blocks.symbol, blocks.first_bar)
    logits, value = networks.heads(params, embedding, blocks.account, blocks.mask)
    log_ratio = log_prob(logits, blocks.action) - blocks.log_prob
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - clip_ratio, 1.0 + clip_ratio)
    policy_loss = -jnp.mean(jnp.minimum(ratio * blocks.advantage, clipped * blocks.advantage))
    value_loss = 0.5 * jnp.mean((value - blocks.returns) ** 2)
    nats = jnp.mean(entropy(logits))
    loss = policy_loss + value_coef * value_loss - entropy_coef * nats
    parts = LossParts(
        policy_loss=policy_loss,
        value_loss=value_loss,
        entropy=nats,
        approx_kl=jnp.mean(jnp.expm1(log_ratio) - log_ratio),
        clip_fraction=jnp.mean((jnp.abs(ratio - 1.0) > clip_ratio).astype(jnp.float32)),
        grad_norm=jnp.float32(0.0),
    )
    return loss, parts


def new_optimizer_state(networks: ActorCritic, params: Params, ppo: PPOParams) -> optax.OptState:
    """The optimiser's state before the first update, for the parameters that training changes."""
    vector, _ = ravel_pytree(networks.split(params)[0])
    return optimizer(ppo, ppo.learning_rate).init(vector)


def optimizer(ppo: PPOParams, learning_rate: jax.Array) -> optax.GradientTransformation:
    """Adam after clipping the global norm; both rates may be traced."""
    return optax.chain(
        optax.clip_by_global_norm(ppo.max_grad_norm),
        optax.scale_by_adam(eps=1e-5),
        optax.scale_by_learning_rate(learning_rate),
    )


def learning_rate_at(ppo: PPOParams, progress: jax.Array) -> jax.Array:
    """Linear from `learning_rate` to `final_learning_rate` over `progress` in [0, 1]."""
    return ppo.learning_rate + progress * (ppo.final_learning_rate - ppo.learning_rate)


def mean_over_groups(function: Callable[[Any], Any], batches: Any) -> Any:
    """The mean of `function` over batches [G, ...].

    It is taken of one long vector, the only thing that devices with a batch each then exchange:
    twenty arrays would cost twenty exchanges.
    """
    if len(jax.tree.leaves(batches)[0]) == 1:
        return function(jax.tree.map(lambda x: x[0], batches))
    each = jax.vmap(function)(batches)
    _, unravel = ravel_pytree(jax.tree.map(lambda x: x[0], each))
    return unravel(jnp.mean(jax.vmap(lambda tree: ravel_pytree(tree)[0])(each), axis=0))


def optimize(
    key: jax.Array,
    networks: ActorCritic,
    params: Params,
    opt_state: optax.OptState,
    market: Market,
    blocks: Blocks,
    shape: PPOShape,
    ppo: PPOParams,
    learning_rate: jax.Array,
    entropy_coef: jax.Array,
    table: jax.Array | None = None,
) -> tuple[Params, optax.OptState, LossParts, jax.Array]:
    """All epochs and minibatches of one update.

    Blocks are shuffled, never rows: shuffling rows costs more than the update's arithmetic. The
    optimiser sees the trained parameters as one vector: twenty small arrays cost it ten times more.

    Returns:
      (params, opt_state, mean loss parts over the minibatches applied, bool[] all finite).
    """
    tx = optimizer(ppo, learning_rate)
    trained, frozen = networks.split(params)
    vector, unravel = ravel_pytree(trained)
    groups = shape.env_shards
    blocks = jax.tree.map(lambda x: x.reshape(groups, -1, *x.shape[1:]), blocks)
    by_group = jax.vmap(lambda x, ids: x[ids])  # no block leaves its group's device

    def loss_of(vector: jax.Array, batch: Blocks) -> tuple[jax.Array, LossParts]:
        params = {**unravel(vector), **frozen}
        return ppo_loss(params, networks, market, batch, ppo, entropy_coef, table, shape.passes)

    value_and_grad = jax.value_and_grad(loss_of, has_aux=True)

    def minibatch(carry, dealt: tuple[jax.Array, jax.Array]):
        vector, opt_state, sums, applied, active, finite = carry
        ids, advantage = dealt
        batch = replace(jax.tree.map(lambda x: by_group(x, ids), blocks), advantage=advantage)
        (loss, parts), grads = mean_over_groups(partial(value_and_grad, vector), batch)
        parts = replace(parts, grad_norm=optax.tree.norm(grads))
        ok = jnp.isfinite(loss) & jnp.isfinite(parts.grad_norm)
        active = active & ok
        updates, new_opt_state = tx.update(grads, opt_state, vector)
        vector, opt_state = jax.tree.map(
            lambda new, old: jnp.where(active, new, old),
            (vector + updates, new_opt_state),
            (vector, opt_state),
        )
        sums = jax.tree.map(lambda total, x: total + jnp.where(active, x, 0.0), sums, parts)
        # The minibatch that crosses the limit still counts; those after it do not.
        carry = (
            vector,
            opt_state,
            sums,
            applied + active,
            active & (parts.approx_kl <= ppo.target_kl),
            finite & ok,
        )
        return carry, None

    def epoch(keyed, _):
        key, carry = keyed
        key, key_order = jax.random.split(key)
        per_group = shape.minibatches * shape.blocks_per_minibatch // groups
        orders = jax.vmap(jax.random.permutation, (0, None))(
            jax.random.split(key_order, groups), per_group
        )
        ids = jnp.swapaxes(orders.reshape(groups, shape.minibatches, -1), 0, 1)
        # All minibatches' at once: devices that share them agree on the moments once an epoch.
        advantages = jax.vmap(lambda ids: standardized(by_group(blocks.advantage, ids)))(ids)
        carry, _ = jax.lax.scan(minibatch, carry, (ids, advantages))
        return (key, carry), None

    zeros = LossParts(*[jnp.float32(0.0)] * 6)
    carry = (vector, opt_state, zeros, jnp.int32(0), jnp.bool_(True), jnp.bool_(True))
    (_, carry), _ = jax.lax.scan(epoch, (key, carry), length=shape.num_epochs)
    vector, opt_state, sums, applied, _, finite = carry
    mean = jax.tree.map(lambda total: total / jnp.maximum(applied, 1), sums)
    return {**unravel(vector), **frozen}, opt_state, mean, finite
