"""What the benchmarks count and write; how fast anything is, no test asks."""

import json
from dataclasses import replace
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs
import yaml
from matplotlib.image import imread

from benchmarks import compile, learning, memory, throughput
from benchmarks.costs import Ceilings, Cost, costs, matmul_flops, measured_ceilings
from envs.actions import Action
from jaxtrader.config import TrainingConfig, replace_settings
from jaxtrader.errors import ConfigError
from jaxtrader.program import build_program, hyperparameters

CONFIG = small_runs.CONFIG


def small_config(folder: Path) -> str:
    """The small settings as a file."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(CONFIG.to_dict()))), encoding="utf-8")
    return str(path)


# --------------------------------------------------------------------------------------- counting


def test_products_are_counted_wherever_they_stand() -> None:
    a, b = jnp.ones((3, 5)), jnp.ones((5, 7))
    one = 2 * 3 * 5 * 7
    assert matmul_flops(lambda a, b: a @ b, a, b) == one
    assert matmul_flops(jax.jit(lambda a, b: (a @ b).sum()), a, b) == one
    assert matmul_flops(jax.vmap(lambda a, b: a @ b), jnp.ones((4, 3, 5)), jnp.ones((4, 5, 7))) == (
        4 * one
    )

    def scanned(a, b):
        return jax.lax.scan(lambda c, _: (c + (a @ b).sum(), None), 0.0, length=11)[0]

    assert matmul_flops(scanned, a, b) == 11 * one
    # One product for each operand's gradient; the value, which nobody asks for, is not counted.
    grad = jax.grad(lambda a, b: (a @ b).sum(), argnums=(0, 1))
    assert matmul_flops(grad, a, b) == 2 * one
    assert matmul_flops(lambda a, b: (a @ b, grad(a, b)), a, b) == 3 * one

    def branches(a, b):
        return jax.lax.cond(a.sum() > 0, lambda: (a @ b).sum(), lambda: (b.T @ b).sum())

    assert matmul_flops(branches, a, b) == max(one, 2 * 7 * 5 * 7)
    assert matmul_flops(lambda a, b: a[0] * b[:, 0], a, b) == 0


def test_what_cannot_be_counted_is_refused() -> None:
    a = jnp.ones((3, 3))
    with pytest.raises(ValueError, match="unknown length"):
        matmul_flops(lambda a: jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ a, a), a)
    with pytest.raises(ValueError, match="convolutions"):
        matmul_flops(lambda a: jnp.convolve(a[0], a[1]), a)


def encoder_flops(num_features: int, bars: int) -> tuple[int, int]:
    """(forward, forward and backward) of the small encoder by its layers' sizes."""
    inputs, forward, backward = num_features, 0, 0
    for layer, dilation in enumerate(CONFIG.network.dilations):
        product = 2 * bars * inputs * 2 * CONFIG.network.channels
        forward += product
        # Gradients of the kernel and, above the first layer, of the input.
        backward += product * (1 if layer == 0 else 2)
        inputs, bars = CONFIG.network.channels, bars - dilation
    return forward, forward + backward


def heads_flops(steps: int) -> tuple[int, int, int]:
    """(critic forward, both forward, both forward and backward) of the small heads."""
    network = CONFIG.network
    account = 12 * network.account_hidden
    hidden = (network.channels + network.account_hidden) * network.hidden
    critic, actor = network.hidden, 7 * network.hidden
    both = account + 2 * hidden + critic + actor
    # Nobody asks for the gradient of what the account shows.
    return tuple(2 * steps * n for n in (account + hidden + critic, both, 3 * both - account))


def test_operations_of_a_step_by_hand() -> None:
    market = small_runs.market("BBB")
    program = build_program(CONFIG, market)
    shape, ppo = program.learner.shape, CONFIG.ppo
    found = costs(program)
    context = CONFIG.network.receptive_field - 1
    bars = program.params["train"].market.close.shape[-1]
    steps = ppo.num_envs * ppo.rollout_steps

    def encoded(blocks: int, length: int) -> tuple[int, int]:
        """Sequences and bars in each: blocks with their context, or the market."""
        in_blocks = blocks * (context + length)
        return (blocks, context + length) if in_blocks < bars else (1, bars)

    # A rollout acts on every step, and asks the critic once more after each block and at the end.
    features = len(market.feature_names)
    blocks = ppo.num_envs * shape.num_blocks
    sequences, length = encoded(blocks + ppo.num_envs, shape.block_length + 1)
    forward = sequences * encoder_flops(features, length)[0]
    forward += heads_flops(steps)[1] + heads_flops(blocks + ppo.num_envs)[0]
    assert found["environment"].flops == 0
    assert found["rollout"].flops == pytest.approx(forward / steps)
    sequences, length = encoded(shape.blocks_per_minibatch, shape.block_length)
    whole = sequences * encoder_flops(features, length)[1] + heads_flops(ppo.batch_size)[2]
    learning = ppo.num_epochs * shape.minibatches * whole
    assert found["training"].flops == pytest.approx((forward + learning) / steps)


def test_bytes_of_a_step_by_hand() -> None:
    """An account is read and written once, a quote read."""
    program = build_program(CONFIG, small_runs.market("BBB"))
    found = costs(program)
    trading = jax.tree.map(lambda x: x[0], program.params["train"])
    env = program.learner.env
    state = env.initial_state(jnp.int32(0), jnp.int32(40), jnp.int32(80))
    quote = env.quote(jnp.int32(0), jnp.int32(40), trading)
    size = {name: sum(x.nbytes for x in jax.tree.leaves(x)) for name, x in
            {"state": state, "quote": quote}.items()}  # fmt: skip
    assert found["environment"].bytes == 2 * size["state"] + size["quote"]
    assert size["state"] < 128
    record = 12 * 4 + 7 + 4 * 4 + 2 * 4 + 2  # account, mask, floats, actions, ends of a step
    assert found["rollout"].bytes - found["environment"].bytes == pytest.approx(record, rel=0.2)
    assert found["training"].bytes > found["rollout"].bytes


def test_the_scarcer_resource_is_the_limit() -> None:
    ceilings = Ceilings(flops_per_second=100.0, bytes_per_second=10.0)
    assert Cost(flops=200.0, bytes=10.0).limit(ceilings) == "compute"
    assert Cost(flops=200.0, bytes=10.0).least_seconds(ceilings) == 2.0
    assert Cost(flops=200.0, bytes=30.0).limit(ceilings) == "memory"
    assert Cost(flops=200.0, bytes=30.0).least_seconds(ceilings) == 3.0
    shares = throughput.shares(Cost(flops=200.0, bytes=30.0), 0.25, ceilings)
    assert shares["share_of_limit"] == 0.75
    assert shares["share_of_matmul_ceiling"] == 0.5


def test_ceilings_are_measured() -> None:
    ceilings = measured_ceilings("float32", repeats=1)
    assert ceilings.flops_per_second > 1e8
    assert ceilings.bytes_per_second > 1e7


# ------------------------------------------------------------------------------------- throughput


def test_walking_adds_up_what_is_shown_and_paid() -> None:
    """One environment, step by step."""
    config = replace_settings(CONFIG, "ppo", num_envs=1, rollout_steps=16, batch_size=16)
    program = build_program(config, small_runs.market("BBB"))
    learner = program.learner
    env = learner.env
    params = jax.tree.map(lambda x: x[0], program.params["train"])
    first = int(params.starts.sample(jax.random.key(5), jnp.int32(64))[1])
    state = env.initial_state(jnp.int32(0), jnp.int32(first), jnp.int32(first + 64))
    key = jax.random.key(3)
    walks = throughput.start_walk(jax.tree.map(lambda x: x[None], state))
    walked, sums = jax.jit(throughput.walk, static_argnums=0)(
        learner, params, walks, jax.random.clone(key)
    )
    _, key_actions, _ = jax.random.split(key, 3)
    total = 0.0
    uniforms = np.asarray(jax.random.uniform(key_actions, (16, 1)))[:, 0]
    for action in (uniforms * len(Action)).astype(int):
        total += float(env.account_features(state, params).sum())
        total += float(env.action_mask(state, params).sum())
        state, outcome = env.transition(state, jnp.int32(action), params)
        total += float(outcome.reward)
        assert not bool(outcome.terminated)
    np.testing.assert_allclose(sums, [total], rtol=1e-5)
    walked = jax.tree.map(lambda x: x[0], walked)
    chex.assert_trees_all_close(walked, state, rtol=1e-5, atol=1e-7)


def test_acting_goes_on_and_changes_no_weights() -> None:
    program = small_runs.program("BBB")
    params = jax.tree.map(lambda x: x[0], program.params["train"])
    learner = program.learner
    before = learner.init(jax.random.key(0), params, hyperparameters(CONFIG, 1))
    cloned = replace(before, key=jax.random.clone(before.key))
    after = jax.jit(throughput.act, static_argnums=0)(learner, cloned, params)
    chex.assert_trees_all_equal(after.params, before.params)
    chex.assert_trees_all_equal(after.return_scale, before.return_scale)
    assert bool((after.walkers.state.bar != before.walkers.state.bar).all())


@pytest.mark.parametrize(
    ("envs", "rollout_steps", "batch_size"),
    [
        (1, 512, 256),  # a minibatch no smaller than the config's
        (8, 512, 256),
        (512, 512, 16_384),  # 16 of an epoch, as with 8
        (4096, 512, 131_072),
        (65_536, 32, 131_072),  # two million steps
    ],
)
def test_rollouts_and_minibatches_grow_with_environments(
    envs: int, rollout_steps: int, batch_size: int
) -> None:
    ppo = throughput.scaled(TrainingConfig(), envs).ppo
    assert (ppo.num_envs, ppo.rollout_steps, ppo.batch_size) == (envs, rollout_steps, batch_size)


def test_the_knee_is_where_more_brings_little() -> None:
    rows = [
        {"envs": envs, "columns": {"training": {"steps_per_second": rate}}}
        for envs, rate in [(1, 10.0), (8, 70.0), (64, 81.0), (512, 100.0), (4096, 90.0)]
    ]
    assert throughput.knee(rows, "training") == 64


@pytest.mark.slow
def test_throughput_measures_draws_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output, plot = tmp_path / "throughput.json", tmp_path / "plots" / "throughput.png"
    status = throughput.main(
        [
            "--config", small_config(tmp_path), "--envs", "4", "--seeds", "--symbols",
            "--repeats", "1", "--output", str(output), "--plot", str(plot),
        ]
    )  # fmt: skip
    assert status == 0
    result = json.loads(output.read_text())
    [row] = result["envs"]
    assert (row["seeds"], row["symbols"], row["envs"]) == (1, 1, 4)
    assert not {"seeds", "symbols"} & set(result)
    assert set(result["knees"]) == {"environment", "rollout", "training"}
    assert min(column["steps_per_second"] for column in row["columns"].values()) > 0
    training = row["columns"]["training"]
    attained = training["flops"] * training["steps_per_second"]
    share = attained / result["ceilings"]["flops_per_second"]
    assert training["share_of_matmul_ceiling"] == pytest.approx(share)
    assert imread(plot).shape[0] > 300
    printed = " ".join(capsys.readouterr().out.split())
    assert "GFLOP/s" in printed
    assert "knee" in printed


# ------------------------------------------------------------------------------- memory, compiling


@pytest.mark.slow
def test_memory_grows_as_shapes_say(tmp_path: Path) -> None:
    output = tmp_path / "memory.json"
    config = small_config(tmp_path)
    assert (
        memory.main(
            [
                *("--config", config, "--envs", "512", "64", "--symbols", "2", "1"),
                *("--output", str(output)),
            ]
        )
        == 0
    )
    few, many, one, two = json.loads(output.read_text())["rows"]
    assert [row["envs"] for row in (few, many)] == [64, 512]
    assert [row["symbols"] for row in (few, many, one, two)] == [1, 1, 1, 2]
    for part in ("market", "agents", "environments"):
        assert two["by_shapes"][part] == 2 * one["by_shapes"][part]
    assert two["by_compiler"] > one["by_compiler"]
    # What does not grow with environments aside, the compiler needs about what shapes say.
    grown = many["by_compiler"] - few["by_compiler"]
    said = many["by_shapes"]["total"] - few["by_shapes"]["total"]
    assert 0.5 < grown / said < 1.5
    if jax.default_backend() == "cpu":
        assert few["peak"] is None


@pytest.mark.slow
def test_a_second_start_compiles_less(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "compile.json"
    config = small_config(tmp_path)
    arguments = ["--config", config, "--seeds", "1", "--repeats", "1", "--output", str(output)]
    assert compile.main(arguments) == 0
    cold, warm = json.loads(output.read_text())["rows"]
    assert (cold["cache"], warm["cache"]) == ("cold", "warm")
    for row in (cold, warm):
        assert 0 < row["imports"] < row["program"] < row["agents"] < row["update"]
    assert warm["compiling"] < cold["compiling"]
    assert "first update" in capsys.readouterr().out


def test_of_several_starts_the_medians_count() -> None:
    """Also where one process was held up."""
    times = [(16, "cold", 3.0), (16, "warm", 1.0), (1, "cold", 2.0)]
    starts = [
        compile.Start(seeds, cache, 0.1, 0.2, 0.3, at * factor, at)
        for factor in (1.0, 50.0, 2.0)
        for seeds, cache, at in times
    ]
    found = [(row.seeds, row.cache, row.update) for row in compile.medians(starts)]
    assert found == [(16, "cold", 6.0), (16, "warm", 2.0), (1, "cold", 4.0)]


def test_a_start_that_fails_says_why(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text("ppo: {num_envs: 3, rollout_steps: 10, batch_size: 7}\n")
    assert compile.main(["--config", str(config), "--seeds", "1"]) == 2
    assert "not a multiple of batch_size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "timesteps", "num_envs", "precision"),
    [
        ([], 400_000, 8, "float32"),
        (["--precision", "bfloat16"], 400_000, 8, "bfloat16"),
        (["--markets", "faint"], 4_000_000, 64, "float32"),
        (["--markets", "faint", "--config", "guide"], 5_242_880, 128, "float32"),
        (["--config", "throughput"], 50_331_648, 2048, "float32"),
        (["--config", "throughput", "--timesteps", "7"], 7, 2048, "float32"),
    ],
)
def test_what_a_market_is_learnt_with(
    monkeypatch, arguments: list[str], timesteps: int, num_envs: int, precision: str
) -> None:
    """A lesson's own settings, unless there are others. Nothing is learnt here."""
    asked = []

    def not_learnt(market, seeds, timesteps, config, **_):
        asked.append((timesteps, config.ppo.num_envs, config.network.precision))
        raise ConfigError("enough")

    monkeypatch.setattr(learning, "learn_probe", not_learnt)
    assert learning.main(arguments) == 2
    assert asked == [(timesteps, num_envs, precision)]


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (throughput, ["--envs", "0"], "--envs (0,)"),
        (throughput, ["--envs", "--seeds", "--symbols"], "--envs () --seeds () --symbols ()"),
        (throughput, ["--repeats", "0"], "--repeats 0"),
        (throughput, ["--config", "none.yaml"], "none.yaml: cannot be read"),
        (memory, ["--symbols", "-1"], "--symbols (-1,)"),
        (memory, ["--config", "none.yaml"], "none.yaml: cannot be read"),
        (compile, ["--seeds", "0"], "--seeds (0,)"),
        (compile, ["--seeds"], "--seeds ()"),
        (compile, ["--repeats", "0"], "--repeats 0"),
    ],
)
def test_bad_arguments_are_named(
    command, arguments: list[str], words: str, capsys: pytest.CaptureFixture
) -> None:
    assert command.main(arguments) == 2
    assert words in capsys.readouterr().err
