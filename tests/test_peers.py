"""The peers do the work that the comparison says they do, and the commands say what they measured.

Oracles: `agents.ppo.ppo_loss` on the same steps; flax for torch and torch for flax; SB3's own
DummyVecEnv over single environments for the one that steps all at once.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs
import yaml
from learners import NETWORKS, ppo_params
from markets import params_for, random_walk
from rich.console import Console

from agents.networks import ActorCritic, NetworkConfig
from agents.ppo import Blocks, ppo_loss, standardized
from benchmarks import learning
from benchmarks.peers import comparison, race, rows
from benchmarks.peers.__main__ import main
from benchmarks.peers.windowed import (
    ConvolutionEncoder,
    DenseEncoder,
    PairingEncoder,
    Rows,
    WindowActorCritic,
    WindowedPPO,
    windowed_loss,
    windowed_policy,
)
from envs.actions import Action, Reason
from envs.trading import NUM_ACCOUNT_FEATURES, TradingEnv
from jaxtrader.config import replace_settings
from jaxtrader.data.planted import PROBES
from jaxtrader.errors import ConfigError
from jaxtrader.program import hyperparameters

CONFIG = small_runs.CONFIG
WINDOW = NETWORKS.receptive_field
MARKET = random_walk(2, 40, 3, seed=11)


@pytest.fixture(scope="module", autouse=True)
def full_precision():
    """Accelerators round the factors of a matrix product unless told not to."""
    with jax.default_matmul_precision("highest"):
        yield


def new_params(networks: ActorCritic, seed: int, num_features: int = 3) -> Any:
    return jax.jit(networks.init, static_argnums=1)(jax.random.key(seed), num_features)


def windows_ending(bars: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """Features of the WINDOW bars up to each of `bars`, [..., WINDOW * F]."""
    offsets = np.arange(WINDOW) - (WINDOW - 1)
    features = np.asarray(MARKET.features)[symbols[..., None], bars[..., None] + offsets]
    return features.reshape(*bars.shape, -1)


# ---------------------------------------------------------------------------------- windowed JAX


def of_convolution(encoder: Any) -> Any:
    """A kernel [2 F, C] of the library is a kernel [2, F, C] of the convolution."""
    return {
        name: {**layer, "kernel": layer["kernel"].reshape(2, -1, layer["kernel"].shape[-1])}
        for name, layer in encoder.items()
    }


@pytest.mark.parametrize("encoder", [DenseEncoder, ConvolutionEncoder, PairingEncoder])
def test_the_windowed_loss_and_its_gradient_are_those_of_ppo_loss(encoder: Any) -> None:
    """On five blocks of six steps each, or the same steps as thirty rows in another order."""
    networks = WindowActorCritic(NETWORKS.config, encoder)
    params = new_params(NETWORKS, 1)
    rng = np.random.default_rng(2)
    symbol, first = rng.integers(0, 2, 5), rng.integers(WINDOW - 1, 30, 5)
    mask = rng.random((5, 6, 7)) < 0.7
    mask[..., 0] = True
    steps = {
        "account": rng.standard_normal((5, 6, NUM_ACCOUNT_FEATURES)).astype(np.float32),
        "mask": mask,
        "action": np.argmax(rng.random(mask.shape) * mask, axis=-1).astype(np.int32),
        "log_prob": np.log(rng.uniform(0.05, 0.6, (5, 6))).astype(np.float32),
        "advantage": rng.standard_normal((5, 6)).astype(np.float32),
        "returns": rng.standard_normal((5, 6)).astype(np.float32),
    }
    blocks = Blocks(
        symbol=jnp.asarray(symbol, jnp.int32),
        first_bar=jnp.asarray(first, jnp.int32),
        **{name: jnp.asarray(x) for name, x in steps.items()},
    )
    market_half = windows_ending(first[:, None] + np.arange(6), np.tile(symbol[:, None], 6))
    observation = np.concatenate([market_half, steps.pop("account")], axis=-1)
    order = rng.permutation(30)
    dealt = Rows(
        **{
            name: jnp.asarray(x.reshape(30, *x.shape[2:])[order])
            for name, x in {"observation": observation, **steps}.items()
        }
    )
    blocks = replace(blocks, advantage=standardized(blocks.advantage))
    ppo, entropy_coef = ppo_params(), jnp.float32(0.3)

    @jax.jit
    def ours(params: Any) -> Any:
        return ppo_loss(params, NETWORKS, MARKET, blocks, ppo, entropy_coef)[0]

    @jax.jit
    def theirs(params: Any) -> Any:
        if encoder is ConvolutionEncoder:
            params = {**params, "encoder": of_convolution(params["encoder"])}
        return windowed_loss(params, networks, dealt, ppo, entropy_coef)

    loss, gradient = jax.value_and_grad(ours)(params)
    their_loss, their_gradient = jax.value_and_grad(theirs)(params)
    assert float(their_loss) == pytest.approx(float(loss), rel=1e-5)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        other = their_gradient
        for key in path:
            other = other[key.key]
        assert np.abs(leaf).max() > 1e-4, path  # there is something to compare
        np.testing.assert_allclose(other, leaf, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("encoder", [DenseEncoder, ConvolutionEncoder, PairingEncoder])
def test_the_encoders_of_the_windowed_peer_start_with_our_shapes(encoder: Any) -> None:
    made = new_params(WindowActorCritic(NETWORKS.config, encoder), 0)["encoder"]
    expected = new_params(NETWORKS, 0)["encoder"]
    if encoder is ConvolutionEncoder:
        expected = of_convolution(expected)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, expected)


def test_the_windowed_rollout_bootstraps_from_the_observation_before_the_reset() -> None:
    """Whoever only holds earns nothing: with lambda 0 a return is gamma times the next value.

    The next bar's value, that is, also where the episode is cut and the next row is elsewhere.
    """
    params = params_for(MARKET, episode_length=5, receptive_field=WINDOW, reward="log_wealth")
    env = TradingEnv(params, window=WINDOW)
    holding = ActorCritic(replace(NETWORKS.config, hold_bias=1000.0, logit_cap=1000.0))
    config = replace(CONFIG.ppo, num_envs=3, rollout_steps=17, reward_normalization="none")
    peer = WindowedPPO(env, holding, config)
    hyper = hyperparameters(CONFIG, 10)
    ppo = ppo_params(discount=0.9, trace_decay=0.0)
    state = jax.jit(peer.init)(jax.random.key(0), params, hyper)
    after, stored = jax.jit(peer.collect)(state, params, ppo)
    assert (stored.action == Action.HOLD).all()
    observation = np.asarray(stored.observation)
    now = observation[:, :-NUM_ACCOUNT_FEATURES].reshape(len(observation), WINDOW, -1)[:, -1]
    features = np.asarray(MARKET.features)
    places = [np.argwhere((features == row).all(axis=-1)) for row in now]
    symbols, bars = np.concatenate(places).T  # one place each: the features are noise
    following = np.concatenate(
        [windows_ending(bars + 1, symbols), observation[:, -NUM_ACCOUNT_FEATURES:]], axis=-1
    )
    _, value = windowed_policy(holding, state.params, jnp.asarray(following), stored.mask)
    np.testing.assert_allclose(stored.returns, 0.9 * value, rtol=1e-4, atol=1e-6)
    jumps = np.diff(bars.reshape(17, 3), axis=0) != 1
    assert jumps.sum() >= 6  # episodes were cut, and went on elsewhere
    assert len(np.unique(value)) > 10
    assert after.observation.shape == state.observation.shape


# ----------------------------------------------------------------------------- Stable-Baselines3


def sb3() -> Any:
    pytest.importorskip("torch")
    pytest.importorskip("stable_baselines3")
    from benchmarks.peers import stable_baselines

    stable_baselines.ALL_THREADS = 1  # on a machine that runs other tests, the better choice
    return stable_baselines


def small_model(**arguments: Any) -> Any:
    module, market = sb3(), small_runs.market("BBB")
    envs = module.adapter_environments(module.VectorAdapter, market, CONFIG)
    return module.learner(envs, CONFIG, len(market.feature_names), **arguments)


def test_the_torch_policy_is_the_flax_policy() -> None:
    """With the same weights, up to the cap on logits."""
    import torch

    model = small_model()
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    networks = ActorCritic(CONFIG.network)
    params = sb3().network_parameters(model.policy)
    shapes = jax.tree.map(jnp.shape, new_params(networks, 0, 23))
    assert jax.tree.map(jnp.shape, params) == shapes
    observation = np.random.default_rng(0).standard_normal((50, 8 * 23 + 12)).astype(np.float32)
    with torch.no_grad():
        features = model.policy.extract_features(torch.from_numpy(observation))
        actor, critic = model.policy.mlp_extractor(features)
        raw = model.policy.action_net(actor).numpy()
        value = model.policy.value_net(critic).numpy()[:, 0]
    logits, our_value = windowed_policy(
        networks, params, jnp.asarray(observation), jnp.ones((50, 7), bool)
    )
    np.testing.assert_allclose(our_value, value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits, 10.0 * np.tanh(raw / 10.0), rtol=1e-4, atol=1e-5)
    assert np.std(raw, axis=0).min() > 0.01
    before = jax.tree.map(np.array, params)
    with torch.no_grad():
        model.policy.action_net.weight.zero_()
    assert jax.tree.all(jax.tree.map(np.array_equal, params, before))  # a copy, not a view


def test_dilations_that_do_not_double_are_refused() -> None:
    module = sb3()
    with pytest.raises(ConfigError, match=r"dilations = \(1, 3\).*\(1, 2\)"):
        module.WindowEncoder(NetworkConfig(dilations=(1, 3)), 4)


def test_the_settings_reach_sb3() -> None:
    ppo = replace(
        CONFIG.ppo, learning_rate=1e-3, gamma=0.9, gae_lambda=0.8, clip_ratio=0.1, value_coef=0.6,
        entropy_coef=0.02, max_grad_norm=0.4, num_epochs=3,
    )  # fmt: skip
    module, market = sb3(), small_runs.market("BBB")
    config = replace(CONFIG, ppo=ppo)
    envs = module.adapter_environments(module.VectorAdapter, market, config)
    model = module.learner(envs, config, len(market.feature_names))
    optimizer = model.policy.optimizer.defaults
    assert (optimizer["lr"], optimizer["eps"]) == (1e-3, 1e-5)
    assert (model.gamma, model.gae_lambda, model.clip_range(1.0)) == (0.9, 0.8, 0.1)
    assert (model.ent_coef, model.vf_coef, model.max_grad_norm) == (0.02, 0.3, 0.4)
    assert (model.n_steps, model.n_envs, model.batch_size, model.n_epochs) == (64, 2, 64, 3)
    assert model.env.gamma == 0.9
    assert model.env.norm_reward
    assert not model.env.norm_obs
    ours = new_params(ActorCritic(CONFIG.network), 0, 23)
    count = sum(parameter.numel() for parameter in model.policy.parameters())
    assert count == sum(leaf.size for leaf in jax.tree.leaves(ours))


@pytest.mark.parametrize("costs", [{1: 0.1, 3: 1.0}, {1: 1.0, 3: 0.1}])
def test_torch_gets_the_number_of_threads_that_is_faster(
    costs: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    module, model, clock = sb3(), small_model(), [0.0]

    def passing() -> float:
        clock[0] += costs[torch.get_num_threads()]
        return clock[0]

    monkeypatch.setattr(module, "ALL_THREADS", 3)
    monkeypatch.setattr(module.time, "perf_counter", passing)
    try:
        module.use_fastest_threads(model)
        assert torch.get_num_threads() == min(costs, key=lambda threads: costs[threads])
    finally:
        torch.set_num_threads(1)
    assert all(parameter.grad is None for parameter in model.policy.parameters())


def test_stepping_all_at_once_is_what_sb3_does_one_by_one() -> None:
    """Through ends of episodes of either kind."""
    module = sb3()
    from stable_baselines3.common.vec_env import DummyVecEnv

    market, config = small_runs.market("BBB"), replace_settings(CONFIG, "ppo", num_envs=3)
    config = replace_settings(config, "environment", max_drawdown=0.001)
    both = [
        module.adapter_environments(kind, market, config)
        for kind in (module.VectorAdapter, DummyVecEnv)
    ]
    for envs in both:
        envs.seed(7)
    first, expected = (envs.reset() for envs in both)
    np.testing.assert_array_equal(first, expected)
    rng = np.random.default_rng(0)
    ends = set()
    for _ in range(150):
        actions = rng.integers(0, 7, 3)
        own, theirs = (envs.step(actions) for envs in both)
        np.testing.assert_array_equal(own[0], theirs[0])
        np.testing.assert_allclose(own[1], theirs[1], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(own[2], theirs[2])
        assert own[1].dtype == theirs[1].dtype
        masks = (np.stack(envs.env_method("action_masks")) for envs in both)
        np.testing.assert_array_equal(*masks)
        for done, info, their_info in zip(own[2], own[3], theirs[3], strict=True):
            assert ("terminal_observation" in info) == done
            if done:
                truncated = info["TimeLimit.truncated"]
                assert truncated == their_info["TimeLimit.truncated"]
                np.testing.assert_array_equal(
                    info["terminal_observation"], their_info["terminal_observation"]
                )
                ends.add(truncated)
    assert ends == {True, False}


def test_an_episode_that_ends_in_both_ways_is_no_truncation_to_sb3() -> None:
    """SB3 would bootstrap from it."""

    class Ending:
        num_envs, render_mode = 2, None
        single_observation_space = single_action_space = None

        def step(self, actions: np.ndarray) -> Any:
            last = {"final_obs": np.array([np.ones(1), np.ones(1)])}
            yes, both = np.array([True, True]), np.array([True, False])
            return np.zeros((2, 1)), np.zeros(2), both, yes, last

    envs: Any = Ending()
    *_, infos = sb3().VectorAdapter(envs).step(np.zeros(2, int))
    assert [info["TimeLimit.truncated"] for info in infos] == [False, True]


def test_an_embedded_market_shows_the_embedding_of_each_bar() -> None:
    module, market = sb3(), small_runs.market("BBB")
    embedded = module.embedded_market(CONFIG, market)
    envs = [
        module.adapter_environments(module.VectorAdapter, each, CONFIG)
        for each in (market, embedded)
    ]
    for each in envs:
        each.seed(3)
    networks = ActorCritic(CONFIG.network)
    params = new_params(networks, 0, 23)
    window, embedding = (each.reset() for each in envs)
    for _ in range(10):
        features = window[:, :-12].reshape(2, 8, 23)
        expected = networks.encode(params, jnp.asarray(features))[:, 0]
        np.testing.assert_allclose(embedding[:, :-12], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(embedding[:, -12:], window[:, -12:])
        (window, *_), (embedding, *_) = (each.step(np.array([1, 5])) for each in envs)


def test_a_frozen_encoder_stays_as_it_is() -> None:
    sb3()
    market = small_runs.market("BBB")
    contender = rows.stable_baselines(
        CONFIG, market, environments="VectorAdapter", encoder="frozen"
    )
    assert contender.advance() == 128
    *shares, threads = contender.details().values()
    assert sum(shares) == pytest.approx(1.0)
    assert min(shares) > 0.0
    assert threads >= 1
    model = small_model()
    model.policy.features_extractor.encoder.requires_grad_(False)
    before = jax.tree.map(np.array, sb3().network_parameters(model.policy))
    model.learn(128)
    after = sb3().network_parameters(model.policy)
    same = jax.tree.map(np.array_equal, before, after)
    assert jax.tree.all(same["encoder"])
    assert not jax.tree.all(same["heads"])


# ------------------------------------------------------------------------------- gym-trading-env


def test_gym_trading_env_shows_our_bars_and_charges_our_costs() -> None:
    pytest.importorskip("gym_trading_env")
    sb3()
    from benchmarks.peers import gym_trading

    market = small_runs.market("BBB")
    envs = gym_trading.environments(market, CONFIG)
    assert envs.num_envs == 2
    assert envs.action_space.n == 7
    observation = envs.reset()
    first, last = (int(bars[0]) for bars in market.splits["train"])
    features = market.scaler.transform(market.raw_features[0])
    close = market.close[0]
    [bar] = [
        bar
        for bar in range(first, last + 1)
        if np.array_equal(features[bar - 7 : bar + 1], observation[0, :, :-2])
    ]
    np.testing.assert_array_equal(observation[:, -1, -2:], 0.0)
    extractor = small_model().policy.features_extractor
    market_half, _ = gym_trading.ColumnsExtractor.halves(extractor, observation)
    np.testing.assert_array_equal(market_half, observation[:, :, :-2])
    # All that the position cap allows, bought at this close and held to the next.
    after, reward, *_ = envs.step(np.array([6, 0]))
    np.testing.assert_array_equal(after[0, :, :-2], features[bar - 6 : bar + 2])
    assert after[0, -1, -2] == np.float32(0.20)
    _, account = gym_trading.ColumnsExtractor.halves(extractor, after)
    np.testing.assert_array_equal(account, after[:, -1, -2:])
    gain = 0.20 * (close[bar + 1] / close[bar] - 1)
    assert reward[0] == pytest.approx(gain - 0.20 * 7.5e-4, abs=2e-5)
    assert reward[1] == 0.0
    lengths = [1, 1]
    for _ in range(63):
        *_, done, _ = envs.step(np.array([6, 0]))
        lengths = [length + 1 for length in lengths]
    assert not done.any()  # the second episode is under way by now
    assert gym_trading.training_bars(market).shape == (last - first + 8, 24)


def test_gym_trading_env_leaves_warnings_alone() -> None:
    pytest.importorskip("gym_trading_env")
    sb3()
    import sys
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = list(warnings.filters)
        for name in [n for n in sys.modules if n.startswith("gym_trading_env")]:
            del sys.modules[name]
        sys.modules.pop("benchmarks.peers.gym_trading", None)
        importlib.import_module("benchmarks.peers.gym_trading")
        assert list(warnings.filters) == before


# ---------------------------------------------------------------------------------- the comparison


def scripted(seconds: float, steps: int, clock: list[float]) -> comparison.Contender:
    """Does `steps` in `seconds` of a clock that only contenders move."""

    def advance() -> int:
        clock[0] += seconds
        return steps

    return comparison.Contender(advance)


def test_turns_alternate_and_the_ratio_is_their_median(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(comparison.time, "perf_counter", lambda: clock[0])
    closed: list[bool] = []
    durations = itertools.chain([100.0, 4.0, 1.0, 1.0, 2.0], itertools.repeat(1e9))

    def theirs() -> int:
        clock[0] += next(durations)  # the first call, which compiles, does not count
        return 10

    row = comparison.Row(
        name="scripted",
        ours=lambda config, market: scripted(0.5, 20, clock),
        peer=lambda config, market: comparison.Contender(
            theirs, lambda: {"threads": 2}, lambda: closed.append(True)
        ),
        bar=10.0,
        differs=(),
    )
    measured = comparison.compare(row, CONFIG, small_runs.market("BBB"), repeats=3, seconds=2.0)
    assert measured.ours == [40.0] * 3  # four calls a turn
    assert measured.peer == [2.5, 10.0, 5.0]  # one, two and one
    assert measured.ratio == 8.0
    assert not measured.met
    assert closed == [True]
    found = measured.to_dict()
    assert (found["ratio"], found["peer_steps_per_second"], found["bar"]) == (8.0, 5.0, 10.0)
    assert found["peer_details"] == {"threads": 2}
    assert replace(measured, row=replace(row, bar=8.0)).met
    assert replace(measured, row=replace(row, bar=None)).met


def hide(monkeypatch: pytest.MonkeyPatch, *hidden: str) -> None:
    """Makes packages look as if they were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in hidden else find(name, *a)
    )


def test_rows_without_their_packages_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    hide(monkeypatch, "stable_baselines3", "gymnax")
    output = tmp_path / "peers.json"
    names = ["sb3-dummy", "sb3-subproc", "sb3-vector", "sb3-dummy-frozen", "cartpole"]
    assert main(["--only", *names, "--cartpole-envs", "8", "--output", str(output)]) == 1
    printed = capsys.readouterr().out
    assert "cartpole-8: not installed: pip install -e '.[peers]'" in " ".join(printed.split())
    found = {row["name"]: row for row in json.loads(output.read_text())["rows"]}
    assert list(found) == [*names[:-1], "cartpole-8"]
    for row in found.values():
        assert row["not_measured"].startswith("not installed: pip install -e '.[peers]'")
        assert row["ratio"] is None
        assert not row["met"]


def test_gym_trading_env_is_to_be_installed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "gym_trading_env")
    [row] = [row for row in rows.rows(()) if row.name == "gym-trading-env"]
    reason = row.missing()
    assert reason == "not installed: pip install --no-deps gym-trading-env==0.3.5"


def test_a_package_that_cannot_be_imported_gives_a_row() -> None:
    def peer(config: Any, market: Any) -> Any:
        raise ImportError("libfoo.so.1: not found")

    row = comparison.Row("broken", lambda *_: pytest.fail("not compared"), peer, 1.0, ())
    measured = comparison.compare(row, CONFIG, small_runs.market("BBB"), repeats=1, seconds=0.0)
    assert measured.reason == "cannot be imported: libfoo.so.1: not found"
    assert not measured.met


def config_file(folder: Path, **network: Any) -> str:
    """The small settings as a file."""
    values = replace_settings(CONFIG, "network", **network).to_dict()
    values["network"]["dilations"] = list(values["network"]["dilations"])
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--repeats", "0"], "--repeats 0"),
        (["--seconds", "-1"], "--seconds -1"),
        (["--seconds", "nan"], "--seconds nan"),
        (["--cartpole-envs", "8", "0"], "--cartpole-envs (8, 0)"),
        (["--config", "none.yaml"], "none.yaml: cannot be read"),
    ],
)
def test_bad_arguments_are_named(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["--only", "windowed", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_network_that_torch_cannot_have_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    sb3()
    config = config_file(tmp_path, dilations=(1, 3))
    assert main(["--only", "sb3-vector", "--config", config]) == 2
    assert "network.dilations = (1, 3)" in capsys.readouterr().err


def test_single_rows_are_measured_and_printed(capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("gymnax")
    arguments = ["--only", "cartpole", "--cartpole-envs", "16", "--repeats", "1", "--seconds", "0"]
    status = main(arguments)
    printed = " ".join(capsys.readouterr().out.split())
    assert "ours / peer" in printed
    assert "sb3" not in printed
    assert ("MISSED" in printed) == (status == 1)


EVERY_KIND = ("sb3-subproc", "gym-trading-env", "sb3-vector-embedded", "windowed-seeds", "cartpole")


@pytest.mark.slow
def test_rows_of_every_kind_are_measured_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The others differ from one of these in an encoder or in how SB3 steps environments."""
    sb3()
    output = tmp_path / "peers.json"
    status = main(
        [
            "--only", *EVERY_KIND, "--repeats", "2", "--seconds", "0", "--cartpole-envs", "16",
            "--config", config_file(tmp_path), "--output", str(output),
        ]
    )  # fmt: skip
    result = json.loads(output.read_text())
    found = result["rows"]
    expected = [row for row in rows.rows((16,)) if row.name.removesuffix("-16") in EVERY_KIND]
    assert [row["name"] for row in found] == [row.name for row in expected]
    assert [row["not_measured"] for row in found] == [row.missing() for row in expected]
    assert status == (0 if all(row["met"] for row in found) else 1)
    assert result["benchmark"] == "peers"
    assert result["config"]["ppo"]["num_envs"] == 2
    measured = {row["name"]: row for row in found if row["not_measured"] is None}
    assert {"sb3-subproc", "sb3-vector-embedded", "windowed-seeds"} <= set(measured)
    for row in measured.values():
        assert len(row["turns"]["ours"]) == len(row["turns"]["peer"]) == 2
        assert min(row["turns"]["ours"] + row["turns"]["peer"]) > 0
    assert 0.0 < measured["sb3-vector-embedded"]["peer_details"]["in learning"] < 1.0
    assert "in learning 0." in " ".join(capsys.readouterr().out.split())


def test_whoever_stops_keeps_the_rows_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(row: Any, *_: Any) -> comparison.Measured:
        if row.name == "windowed":
            raise KeyboardInterrupt
        return comparison.Measured(row, ours=[6.0], peer=[2.0])

    monkeypatch.setattr("benchmarks.peers.__main__.compare", stopped)
    output = tmp_path / "peers.json"
    with pytest.raises(KeyboardInterrupt):
        main(["--only", "sb3-dummy", "sb3-vector", "windowed", "--output", str(output)])
    written = json.loads(output.read_text())["rows"]
    assert [(row["name"], row["ratio"]) for row in written] == [
        ("sb3-dummy", 3.0),
        ("sb3-vector", 3.0),
    ]


# ---------------------------------------------------------------------------------------- the race


def test_the_clock_of_the_race_stands_still_while_policies_are_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]

    def passing(seconds: float) -> None:
        clock[0] += seconds

    def start(program: Any, seed: int, updates: int) -> race.Trainee:
        passing(7.0)
        return race.Trainee(lambda: passing(2.0), dict, NETWORKS)

    class ScriptedJudge:
        def __init__(self, *shares: float):
            self.shares = iter(shares)

        def share(self, trainee: race.Trainee) -> float:
            passing(1000.0)
            return next(self.shares)

    monkeypatch.setattr(race.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(race, "LEARNERS", {"scripted": start})
    program = small_runs.program("BBB")

    def train(*shares: float, updates: int = 10, budget: float = 100.0) -> race.Run:
        judge: Any = ScriptedJudge(*shares)
        return race.train_to_goal("scripted", judge, program, 3, updates, 0.9, budget)

    assert train(0.5, 0.7, 0.95) == race.Run("scripted", 3, 7.0, 6.0, 384, 0.95, True)
    assert train(0.5, 0.7, updates=2) == race.Run("scripted", 3, 7.0, 4.0, 256, 0.7, False)
    assert train(0.5, 0.7, budget=3.0) == race.Run("scripted", 3, 7.0, 4.0, 256, 0.7, False)


def test_the_ratio_of_a_race_is_the_median_over_seeds() -> None:
    def runs(setup: float, *seconds: float, reached: bool = True) -> list[race.Run]:
        return [
            race.Run("a", seed, setup if seed == 0 else 0.1, each, 1, 0.9, reached)
            for seed, each in enumerate(seconds)
        ]

    found = race._compared(runs(5.0, 1.0, 2.0, 4.0), runs(1.0, 10.0, 40.0, 60.0, reached=False))
    assert found["ratio"] == 15.0  # of 10, 20, 15
    assert found["ratio_with_setup"] == pytest.approx(41 / 7)  # of 11/6, 41/7 and 61/9
    assert not found["reached"]


def test_without_masks_a_policy_may_choose_what_is_illegal() -> None:
    """As SB3's do: judged with masks, it would be a policy that it is not."""
    program = small_runs.program("BBB")
    params = new_params(ActorCritic(CONFIG.network), 0, 23)
    params["heads"]["actor"]["bias"] = jnp.zeros(7).at[Action.SELL_ALL].set(50.0)
    played = {}
    for networks in (ActorCritic(CONFIG.network), race.UnmaskedActorCritic(CONFIG.network)):
        unmasked = replace(program, learner=replace(program.learner, networks=networks))
        stacked = jax.tree.map(lambda x: x[None, None], params)
        start = np.array([[CONFIG.network.receptive_field - 1]])
        steps = unmasked.play(stacked, program.params["test"], start, start + 64, 64).steps
        played[type(networks)] = np.asarray(steps.action), np.asarray(steps.reason)
    actions, reasons = played[race.UnmaskedActorCritic]
    assert (actions == Action.SELL_ALL).all()
    assert Reason.ILLEGAL in reasons
    actions, reasons = played[ActorCritic]
    assert Action.SELL_ALL in actions  # what it has bought
    assert Reason.ILLEGAL not in reasons


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--markets", "null"], "--peers: on the null market there is nothing to reach"),
        (["--timesteps", "0"], "--timesteps 0"),
        (["--peer-seconds", "0"], "--peer-seconds 0"),
        (["--seeds", "1", "1"], "seeds (1, 1)"),
    ],
)
def test_bad_arguments_of_the_race_are_named(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture
) -> None:
    assert learning.main(["--peers", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_the_race_is_run(capsys: pytest.CaptureFixture) -> None:
    """A goal that the first update reaches, and one that is too high for two."""
    sb3()
    console = Console(width=1000)
    found = {}
    for goal, seeds in ((-1e9, (1,)), (2.0, (1, 2))):
        found[goal] = race.race(
            PROBES["trend"](),
            CONFIG,
            seeds,
            2 * small_runs.STEPS_PER_UPDATE,
            history=0,
            goal=goal,
            budget=100.0,
            console=console,
            bars=(600, 200, 600),
        )
    for goal, runs in ((goal, row["runs"]) for goal, row in found.items()):
        assert {run["learner"] for run in runs} >= {"ours", "sb3"}
        for run in runs:
            assert run["reached"] == (goal < 0)
            assert run["steps"] == (128 if goal < 0 else 256)
            assert min(run["setup_seconds"], run["seconds"]) > 0.0
    assert not found[2.0]["passed"]
    printed = capsys.readouterr().out
    assert "sb3 seed 2 gave up at" in printed
    assert "ours seed 1 reached" in printed


def test_a_race_without_sb3_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def absent(program: Any, seed: int, updates: int) -> Any:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    class NoJudge:
        def __init__(self, *arguments: Any):
            pass

        def share(self, trainee: Any) -> float:
            return 1.0

    monkeypatch.setattr(race, "Judge", NoJudge)
    ready = race.Trainee(lambda: None, dict, NETWORKS)
    monkeypatch.setattr(race, "LEARNERS", {"ours": lambda *_: ready, "sb3": absent})
    row = race.race(
        PROBES["trend"](), CONFIG, (1,), 128, history=0, goal=0.9, budget=1.0,
        console=Console(width=1000), bars=(600, 200, 600),
    )  # fmt: skip
    assert not row["passed"]
    assert row["not_measured"] == {
        "sb3": "not measured: torch is not installed: pip install -e '.[peers]' in the checkout"
    }
    assert "torch is not installed" in capsys.readouterr().out
