"""The two layers, whose gradients are written by hand, against plain formulas and autodiff."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from agents.layers import affine, causal
from agents.networks import ActorCritic, MarketEncoder, NetworkConfig, root_mean_square_normalized
from envs.trading import NUM_ACCOUNT_FEATURES

# Sums of some fifty products in float64.
EXACT = {"rtol": 1e-10, "atol": 1e-12}
# Leading axes of the input.
LEADING = [(), (1,), (3, 2), (2, 1, 4)]
# Length and dilation: next to each other, half the length, more than half of it, one row left.
DILATED = [(6, 1), (8, 4), (7, 5), (4, 3)]


@pytest.fixture
def double_precision():
    with jax.enable_x64(True):
        yield


in_double = pytest.mark.usefixtures("double_precision")


def normal(seed, *shape, dtype="float64"):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def plain_affine(x, kernel, bias):
    return jnp.einsum("...k,kn->...n", x, kernel) + bias


def plain_causal(x, kernel, bias, dilation):
    """Rows a dilation apart side by side, as a convolution of width two sees them."""
    past = [x[..., t - dilation, :] for t in range(dilation, x.shape[-2])]
    present = [x[..., t, :] for t in range(dilation, x.shape[-2])]
    pairs = jnp.concatenate([jnp.stack(past, axis=-2), jnp.stack(present, axis=-2)], axis=-1)
    return jax.nn.relu(plain_affine(pairs, kernel, bias))


def value_and_gradients(layer, weights, *inputs):
    """A loss that weighs every output differently, and its gradient in every input."""

    def loss(*inputs):
        y = layer(*inputs)
        return jnp.sum(jnp.sin(y) * weights), y

    of_all = tuple(range(len(inputs)))
    (_, y), gradients = jax.jit(jax.value_and_grad(loss, of_all, has_aux=True))(*inputs)
    return y, gradients


def assert_same_layer(layer, plain, shape, *inputs):
    weights = normal(9, *shape)
    actual = value_and_gradients(layer, weights, *inputs)
    expected = value_and_gradients(plain, weights, *inputs)
    chex.assert_shape(actual[0], shape)
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    chex.assert_trees_all_close(actual, expected, **EXACT)
    assert all(float(jnp.abs(leaf).max()) > 1e-3 for leaf in jax.tree.leaves(actual))


# ------------------------------------------------------------------------- against the formulas


@pytest.mark.parametrize("leading", LEADING)
@in_double
def test_affine(leading):
    inputs = normal(0, *leading, 3), normal(1, 3, 4), normal(2, 4)
    assert_same_layer(affine, plain_affine, (*leading, 4), *inputs)


@pytest.mark.parametrize(
    ("leading", "length", "dilation"),
    [(leading, *dilated) for leading, dilated in zip(LEADING, DILATED, strict=True)]
    + [((2, 3), *dilated) for dilated in DILATED],
)
@in_double
def test_causal(leading, length, dilation):
    inputs = normal(0, *leading, length, 3), normal(1, 6, 4), normal(2, 4)
    assert_same_layer(
        lambda *inputs: causal(*inputs, dilation),
        lambda *inputs: plain_causal(*inputs, dilation),
        (*leading, length - dilation, 4),
        *inputs,
    )


def test_a_causal_row_sees_itself_and_one_row_before():
    """By hand: the first half of the kernel is for the past, and what is negative is cut off."""
    x = jnp.array([[1.0], [10.0], [100.0], [-1000.0]])
    kernel, bias = jnp.array([[2.0], [3.0]]), jnp.array([0.5])
    np.testing.assert_array_equal(causal(x, kernel, bias, 2)[:, 0], [302.5, 0.0])
    np.testing.assert_array_equal(causal(x, kernel, bias, 3)[:, 0], [0.0])
    gradient = jax.grad(lambda x: causal(x, kernel, bias, 2).sum())(x)
    np.testing.assert_array_equal(gradient[:, 0], [2.0, 0.0, 3.0, 0.0])


# ----------------------------------------------------------------------- under transformations


def transformed(transformation, layer):
    """`layer` of (x, kernel, bias), within what the learner wraps it in."""
    over_x, over_all = (0, None, None), (0, 0, 0)
    match transformation:
        case "jit":
            return jax.jit(layer)
        case "checkpoint":
            return jax.checkpoint(layer)
        case "vmap over inputs":
            return jax.vmap(layer, over_x)
        case "vmap over agents":
            return jax.vmap(layer, over_all)
        case "vmap of vmap in jit":
            return jax.jit(jax.vmap(jax.vmap(layer, over_x), over_all))
        case "scan of checkpoint":
            return lambda x, *rest: jax.lax.map(lambda x: jax.checkpoint(layer)(x, *rest), x)
        case "map over agents":
            return lambda *inputs: jax.lax.map(lambda inputs: layer(*inputs), inputs)
    raise ValueError(transformation)


AGENTS = {"vmap over agents", "vmap of vmap in jit", "map over agents"}
TRANSFORMATIONS = [
    *("jit", "checkpoint", "vmap over inputs", "scan of checkpoint"),
    *sorted(AGENTS),
]


@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
@pytest.mark.parametrize("dilation", [None, 3])
@in_double
def test_transformed(transformation, dilation):
    agents = (2,) if transformation in AGENTS else ()
    inputs_size, kernel_size = (5, 3), (3, 4) if dilation is None else (6, 4)
    inputs = (
        normal(0, 2, 3, *inputs_size),
        normal(1, *agents, *kernel_size),
        normal(2, *agents, 4),
    )

    def layer(*inputs):
        return affine(*inputs) if dilation is None else causal(*inputs, dilation)

    def plain(x, kernel, bias):
        """Agent by agent, transformed by nothing."""
        one = plain_affine if dilation is None else lambda *i: plain_causal(*i, dilation)
        if not agents:
            return one(x, kernel, bias)
        return jnp.stack([one(x[a], kernel[a], bias[a]) for a in range(2)])

    rows = 5 if dilation is None else 5 - dilation
    assert_same_layer(transformed(transformation, layer), plain, (2, 3, rows, 4), *inputs)


@pytest.mark.parametrize("dilation", [None, 1])
@in_double
def test_the_type_is_kept(dilation):
    """Values and gradients of bfloat16 inputs are bfloat16, and as close as its three digits."""
    kernel_rows = 3 if dilation is None else 6
    shapes = (2, 5, 3), (kernel_rows, 4), (4,)
    inputs = tuple(normal(seed, *shape, dtype="bfloat16") for seed, shape in enumerate(shapes))

    def layer(*inputs):
        return affine(*inputs) if dilation is None else causal(*inputs, dilation)

    @jax.jit
    def all_of(inputs):
        y, back = jax.vjp(layer, *inputs)
        return y, back(jnp.ones_like(y))

    rounded = all_of(inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded)} == {jnp.dtype("bfloat16")}
    double = all_of(tuple(x.astype("float64") for x in inputs))
    as_double = jax.tree.map(lambda x: x.astype("float64"), rounded)
    chex.assert_trees_all_close(as_double, double, rtol=2**-6, atol=0.1)
    assert {leaf.dtype for leaf in jax.tree.leaves(double)} == {jnp.dtype("float64")}


# ------------------------------------------------------------------------- within the networks

CONFIG = NetworkConfig(channels=8, dilations=(1, 2, 4), hidden=6, account_hidden=5)


class DenseEncoder(nn.Module):
    """The market encoder of flax's own layers."""

    @nn.compact
    def __call__(self, x):
        for layer, dilation in enumerate(CONFIG.dilations):
            pairs = jnp.concatenate([x[..., :-dilation, :], x[..., dilation:, :]], axis=-1)
            init = nn.initializers.orthogonal(2.0**0.5)
            dense = nn.Dense(CONFIG.channels, kernel_init=init, name=f"layer_{layer}")
            y = nn.relu(dense(pairs))
            x = y if layer == 0 else y + x[..., dilation:, :]
        return root_mean_square_normalized(x)


def test_names_and_shapes_of_parameters():
    """Those that checkpoints and exported policies have."""
    init = ActorCritic(CONFIG).init
    params = jax.eval_shape(lambda key: init(key, 4), jax.random.key(0))
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): (leaf.shape, str(leaf.dtype))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    sizes = {
        "encoder/layer_0": (2 * 4, 8),
        "encoder/layer_1": (2 * 8, 8),
        "encoder/layer_2": (2 * 8, 8),
        "heads/account": (NUM_ACCOUNT_FEATURES, 5),
        "heads/actor_hidden": (8 + 5, 6),
        "heads/actor": (6, 7),
        "heads/critic_hidden": (8 + 5, 6),
        "heads/critic": (6, 1),
    }
    kernels = {f"{name}/kernel": (size, "float32") for name, size in sizes.items()}
    biases = {f"{name}/bias": (size[1:], "float32") for name, size in sizes.items()}
    assert shapes == kernels | biases


def test_the_encoder_is_that_of_flaxs_own_layers():
    """From the same key the same parameters to the bit, and the same function and gradient."""
    features = normal(0, 2, 20, 4, dtype="float32")
    key = jax.random.key(3)
    ours, theirs = MarketEncoder(CONFIG), DenseEncoder()
    variables = jax.jit(ours.init)(key, features)
    chex.assert_trees_all_equal(variables, jax.jit(theirs.init)(jax.random.clone(key), features))

    def loss(encoder, variables):
        y = encoder.apply(variables, features)
        return jnp.sum(jnp.sin(3.0 * y)), y

    results = [
        jax.jit(jax.value_and_grad(partial(loss, encoder), has_aux=True))(variables)
        for encoder in (ours, theirs)
    ]
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-4)
