"""The two layers of the networks, with gradients written by hand.

What autodiff makes of them transposes an activation before every product with it, and joins copies
of its input; on a CPU these copies cost as much as a third of the arithmetic.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])


_NARROW = 8  # columns


def _kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """Sum over all leading axes of the outer products of x [..., K] and g [..., N]: [K, N]."""
    x, g = _rows(x), _rows(g)
    if g.shape[-1] <= _NARROW:
        # XLA has no fast product on a CPU for so few columns, and would undo the transposition.
        turned = jax.lax.optimization_barrier(g.T)
        return jax.lax.optimization_barrier(turned @ x).T
    return jax.lax.dot_general(x, g, (((0,), (0,)), ((), ())))


def _input_gradient(g: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.dot_general(g, kernel, (((g.ndim - 1,), (1,)), ((), ())))


@jax.custom_vjp
def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """x [..., K], kernel [K, N] and bias [N] to x @ kernel + bias, [..., N]."""
    return x @ kernel + bias


def _affine_forward(x: jax.Array, kernel: jax.Array, bias: jax.Array):
    return affine(x, kernel, bias), (x, kernel)


def _affine_backward(residuals: tuple[jax.Array, jax.Array], g: jax.Array):
    x, kernel = residuals
    return _input_gradient(g, kernel), _kernel_gradient(x, g), _rows(g).sum(axis=0)


affine.defvjp(_affine_forward, _affine_backward)


def _shifted(x: jax.Array, before: int, after: int) -> jax.Array:
    """x [..., L, C] with rows of zeros around."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(before, after), (0, 0)])


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def causal(x: jax.Array, kernel: jax.Array, bias: jax.Array, dilation: int) -> jax.Array:
    """A causal convolution of width two and its rectifier, without padding.

    Each row times both halves of the kernel in one product, of which row t takes its own second
    half and the first half of row t - dilation: no row is copied to stand beside another.

    Args:
      x: [..., L, K].
      kernel: [2 K, N], first for the row `dilation` steps back, then for the row itself.
      bias: [N].

    Returns:
      [..., L - dilation, N].
    """
    return _causal_forward(x, kernel, bias, dilation)[0]


def _causal_forward(x: jax.Array, kernel: jax.Array, bias: jax.Array, dilation: int):
    size = bias.shape[0]
    halves = jnp.concatenate(jnp.split(kernel, 2), axis=1)
    product = x @ halves
    past, present = product[..., :-dilation, :size], product[..., dilation:, size:]
    y = past + present + bias
    return nn.relu(y), (x, halves, y > 0)


def _causal_backward(
    dilation: int, residuals: tuple[jax.Array, jax.Array, jax.Array], g: jax.Array
):
    x, halves, active = residuals
    g = jnp.where(active, g, jnp.zeros_like(g))
    both = jnp.concatenate([_shifted(g, 0, dilation), _shifted(g, dilation, 0)], axis=-1)
    kernel = jnp.concatenate(jnp.split(_kernel_gradient(x, both), 2, axis=1))
    return _input_gradient(both, halves), kernel, _rows(g).sum(axis=0)


causal.defvjp(_causal_forward, _causal_backward)


class Affine(nn.Module):
    """`affine` with its parameters; inputs and parameters are cast to `dtype`."""

    size: int
    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    dtype: str = "float32"

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., K] to [..., size]."""
        return affine(x.astype(self.dtype), *self.parameters(x.shape[-1]))

    @nn.compact
    def parameters(self, inputs: int) -> tuple[jax.Array, jax.Array]:
        """Kernel [inputs, size] and bias [size]."""
        kernel = self.param("kernel", self.kernel_init, (inputs, self.size))
        bias = self.param("bias", self.bias_init, (self.size,))
        return kernel.astype(self.dtype), bias.astype(self.dtype)


class Causal(Affine):
    """`causal` with its parameters."""

    dilation: int = 1

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., L, K] to [..., L - dilation, size]."""
        return causal(x.astype(self.dtype), *self.parameters(2 * x.shape[-1]), self.dilation)
