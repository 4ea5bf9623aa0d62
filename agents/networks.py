"""The networks: a causal market encoder, an account MLP, and masked actor and critic heads."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from agents.layers import Affine, Causal
from envs.actions import NUM_ACTIONS, Action
from envs.market import Market
from envs.trading import NUM_ACCOUNT_FEATURES

Params = dict[str, Any]

NORM_EPSILON = 1e-6

ILLEGAL_LOGIT = -1e9  # finite, so that neither entropies nor gradients meet inf - inf


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes; all static."""

    channels: int = 32  # width of the encoder and size of the embedding
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16)  # one causal layer each
    hidden: int = 64  # width of the actor and of the critic
    account_hidden: int = 32  # width of the account MLP
    actor_gain: float = 0.1  # orthogonal gain of the action layer: logits start out nearly constant
    # Logit of HOLD at the start. A policy that trades at every bar learns first that trading costs:
    # its own next purchase spoils the sale it tries, and it ends up holding scraps.
    hold_bias: float = 3.0
    logit_cap: float = 10.0  # bound of every logit
    frozen_encoder: bool = False  # the encoder stays as it is; training then costs the heads alone
    # Of the arithmetic in training. Parameters, evaluation and export are float32 in any case.
    precision: Literal["float32", "bfloat16"] = "float32"
    # Recompute activations in the backward pass: less memory for about a third more arithmetic. On
    # a CPU neither: XLA's compiler for it merges the second forward pass with the first.
    gradient_checkpointing: bool = False

    @property
    def receptive_field(self) -> int:
        """Bars that an embedding depends on: its own and those before it."""
        return 1 + sum(self.dilations)


def root_mean_square_normalized(x: jax.Array) -> jax.Array:
    """x over the root of its mean square along the last axis (Zhang & Sennrich 2019, eq. 4)."""
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + NORM_EPSILON)


class MarketEncoder(nn.Module):
    """Dilated causal convolutions of width two (van den Oord et al. 2016), without padding.

    The embedding has a root mean square of 1, so that the account half beside it is not drowned.

    A layer is one matrix product: XLA's convolution inside a scan is an order of magnitude slower
    on CPU. Having no padding makes the sequence form and the window form one function: a sequence
    of L bars yields the embeddings of its last L - R + 1 bars, a window of R bars that of its last
    bar.
    """

    config: NetworkConfig

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """f32[..., L, F] with L >= R to [..., L - R + 1, channels] of the config's precision."""
        config = self.config
        if features.shape[-2] < config.receptive_field:
            raise ValueError(
                f"a sequence of {features.shape[-2]} bars is shorter than the receptive field "
                f"of {config.receptive_field}"
            )
        x = features
        for layer, dilation in enumerate(config.dilations):
            y = Causal(
                config.channels,
                nn.initializers.orthogonal(2.0**0.5),
                dtype=config.precision,
                dilation=dilation,
                name=f"layer_{layer}",
            )(x)
            x = y if layer == 0 else y + x[..., dilation:, :]
        # Squares of bfloat16 would lose what the mean is made of.
        return root_mean_square_normalized(x.astype(jnp.float32)).astype(x.dtype)


class PolicyHeads(nn.Module):
    """Actor and critic on the market embedding and the account half."""

    config: NetworkConfig

    @nn.compact
    def __call__(self, embedding: jax.Array, account: jax.Array) -> tuple[jax.Array, jax.Array]:
        """([..., D], f32[..., A]) to logits f32[..., 7], not yet masked, and value f32[...]."""
        config = self.config

        def layer(size: int, name: str) -> Affine:
            init = nn.initializers.orthogonal(2.0**0.5)
            return Affine(size, init, dtype=config.precision, name=name)

        own = nn.relu(layer(config.account_hidden, "account")(account))
        joint = jnp.concatenate([embedding.astype(own.dtype), own], axis=-1)
        # Two products: the halves of a wider one would be copied apart, their gradients together.
        actor, critic = (
            nn.relu(layer(config.hidden, f"{name}_hidden")(joint)) for name in ("actor", "critic")
        )
        # What the loss compares is float32: a logit of bfloat16 has three digits.
        prior = jnp.zeros(NUM_ACTIONS).at[Action.HOLD].set(config.hold_bias)
        actor_init = nn.initializers.orthogonal(config.actor_gain)
        logits = Affine(NUM_ACTIONS, actor_init, lambda *_: prior, name="actor")(actor)
        # A soft bound, as odds beyond e^20 mean nothing, while the rounding of unbounded logits
        # would set a float32 policy apart from its exported copy.
        logits = config.logit_cap * jnp.tanh(logits / config.logit_cap)
        value = Affine(1, nn.initializers.orthogonal(1.0), name="critic")(critic)
        return logits, value[..., 0]


@dataclass(frozen=True)
class ActorCritic:
    """The two networks behind `init` and `apply`-like functions; parameters travel apart."""

    config: NetworkConfig = NetworkConfig()

    @property
    def receptive_field(self) -> int:
        return self.config.receptive_field

    @property
    def full_precision(self) -> "ActorCritic":
        """The networks that evaluation and export use, of the same parameters."""
        return ActorCritic(replace(self.config, precision="float32"))

    def split(self, params: Params) -> tuple[Params, Params]:
        """(what training changes, what it leaves alone)."""
        frozen = {"encoder"} if self.config.frozen_encoder else set()
        trained = {name: part for name, part in params.items() if name not in frozen}
        return trained, {name: params[name] for name in frozen}

    def init(self, key: jax.Array, num_features: int) -> Params:
        """Parameters `{"encoder": ..., "heads": ...}`."""
        key_encoder, key_heads = jax.random.split(key)
        bars = jnp.zeros((self.receptive_field, num_features))
        embedding = jnp.zeros(self.config.channels)
        account = jnp.zeros(NUM_ACCOUNT_FEATURES)
        return {
            "encoder": MarketEncoder(self.config).init(key_encoder, bars)["params"],
            "heads": PolicyHeads(self.config).init(key_heads, embedding, account)["params"],
        }

    def encode(self, params: Params, features: jax.Array) -> jax.Array:
        """f32[..., L, F] to embeddings of the last L - R + 1 bars, [..., L - R + 1, D]."""

        def apply(params: Params, features: jax.Array) -> jax.Array:
            return cast(jax.Array, MarketEncoder(self.config).apply({"params": params}, features))

        if self.config.gradient_checkpointing:
            apply = jax.checkpoint(apply)
        return apply(params["encoder"], features)

    def heads(
        self, params: Params, embedding: jax.Array, account: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Masked logits f32[..., 7] and value f32[...]; `mask` is bool[..., 7]."""

        def apply(params: Params, *inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
            outputs = PolicyHeads(self.config).apply({"params": params}, *inputs)
            return cast(tuple[jax.Array, jax.Array], outputs)

        if self.config.gradient_checkpointing:
            apply = jax.checkpoint(apply)
        logits, value = apply(params["heads"], embedding, account)
        return mask_logits(logits, mask), value

    def encode_market(self, params: Params, market: Market) -> jax.Array:
        """The embedding of every bar that has a full window: [S, T - R + 1, D].

        Bar t stands in row t - (R - 1).
        """
        return self.encode(params, market.features)

    def block_encoder(
        self,
        params: Params,
        market: Market,
        num_blocks: int,
        length: int,
        table: jax.Array | None = None,
    ) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """A function from blocks of contiguous bars to the embeddings of each of their bars.

        It takes the blocks' symbols and first bars, i32[...] each, and returns [..., length, D].
        Every bar is encoded once: the blocks with R - 1 bars of context each, or here and now the
        whole market, whichever is fewer bars. The choice is made from shapes.

        Args:
          num_blocks: that the function will be asked for, in all its calls.
          table: the market's embeddings, where they have been made already.
        """
        context = self.receptive_field - 1

        def bars_of(first_bar: jax.Array, count: int) -> jax.Array:
            return first_bar[..., None] + jnp.arange(count)

        def encoded(symbol: jax.Array, first_bar: jax.Array) -> jax.Array:
            bars = bars_of(first_bar - context, context + length)
            features = market.features.at[symbol[..., None], bars].get(
                mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
            )
            return self.encode(params, features)

        if table is None:
            if not self.table_is_less(market, num_blocks, length):
                return encoded
            table = self.encode_market(params, market)
        return lambda symbol, first_bar: self.embedding_at(
            table, symbol[..., None], bars_of(first_bar, length)
        )

    def table_is_less(self, market: Market, num_blocks: int, length: int) -> bool:
        """Whether the whole market is no more bars than so many blocks with their context."""
        in_blocks = num_blocks * (self.receptive_field - 1 + length)
        return market.num_symbols * market.num_bars <= in_blocks

    def embedding_at(self, table: jax.Array, symbol: jax.Array, bar: jax.Array) -> jax.Array:
        """Rows of `encode_market`'s table; NaN where the bar has no full window."""
        row = bar - (self.receptive_field - 1)
        return table.at[symbol, row].get(
            mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
        )


def mask_logits(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Logits with illegal actions pushed out of reach; an empty mask permits HOLD alone."""
    hold_only = jnp.arange(logits.shape[-1]) == 0
    mask = jnp.where(jnp.any(mask, axis=-1, keepdims=True), mask, hold_only)
    return jnp.where(mask, logits, ILLEGAL_LOGIT)


def log_prob(logits: jax.Array, action: jax.Array) -> jax.Array:
    """Log-probability of `action` (i32[...]) under masked `logits` f32[..., 7]."""
    log_probs = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(log_probs, action[..., None], axis=-1)[..., 0]


def entropy(logits: jax.Array) -> jax.Array:
    """Entropy in nats of the masked categorical distribution, f32[...]."""
    log_probs = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def sample(uniform: jax.Array, logits: jax.Array) -> jax.Array:
    """The action per row of masked `logits` that `uniform` draws, i32[...].

    By inversion of the distribution function, which takes one random number an action: they can be
    drawn for many steps at once.

    Args:
      uniform: f32[...] in [0, 1), as `jax.random.uniform` draws them.
    """
    # Exponentials of masked logits are 0, so that no draw falls on an illegal action.
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    reached = jnp.cumsum(weights, axis=-1)
    threshold = uniform[..., None] * reached[..., -1:]
    return jnp.sum(reached <= threshold, axis=-1).astype(jnp.int32)


def greedy(logits: jax.Array) -> jax.Array:
    """Most probable action per row, i32[...]."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
