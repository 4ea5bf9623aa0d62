"""A large minibatch in several passes: gradient accumulation.

The gradient of each part is worked out together with its value, so that activations never outlive
their part and take only as much memory as one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def in_passes(
    loss: Callable, passes: int, params: Any, embedding: Any, blocks: Any, rest: tuple
) -> tuple[jax.Array, Any]:
    """The mean of `loss(params, embedding, blocks, *rest)` over equal parts of the blocks.

    Differentiable by `params` and `embedding`.

    Args:
      loss: returns (f32[], anything that can be averaged).
      passes: number of parts, which divides B.
      embedding: leaves [B, ...]; None: nothing.
      blocks: leaves [B, ...].

    Returns:
      (f32[], mean of whatever else the parts returned).
    """
    return _in_passes_forward(loss, passes, params, embedding, blocks, rest)[0]


def _in_passes_forward(
    loss: Callable, passes: int, params: Any, embedding: Any, blocks: Any, rest: tuple
):
    value_and_grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)

    def dealt(x: jax.Array) -> jax.Array:
        """[B, ...] to [passes, B / passes, ...]."""
        return x.reshape(passes, -1, *x.shape[1:])

    def one(sums: Any, part: Any):
        value, (by_params, by_embedding) = value_and_grad(params, *part, *rest)
        return jax.tree.map(jnp.add, sums, (value, by_params)), by_embedding

    parts = jax.tree.map(dealt, (embedding, blocks))
    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(value_and_grad, params, *first, *rest)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[1][0]))
    sums, by_embedding = jax.lax.scan(one, zeros, parts)
    value, by_params = jax.tree.map(lambda total: total / passes, sums)
    by_embedding = jax.tree.map(lambda g: g.reshape(-1, *g.shape[2:]) / passes, by_embedding)
    return value, (by_params, by_embedding)


def _in_passes_backward(loss: Callable, passes: int, residuals: Any, cotangent: Any):
    by_params, by_embedding = jax.tree.map(lambda g: (cotangent[0] * g).astype(g.dtype), residuals)
    return by_params, by_embedding, None, None


in_passes.defvjp(_in_passes_forward, _in_passes_backward)
