"""Device memory: what training takes by its shapes, and what is said when that is too much."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from small_runs import CONFIG, market

from jaxtrader.config import load_config, presets, replace_settings
from jaxtrader.memory import Footprint, explained, footprint, lowered
from jaxtrader.program import build_program, ppo_shape

ROOT = Path(__file__).parents[1]
MIB = 2**20


def parts(**sizes):
    return Footprint(**{**dict.fromkeys(Footprint.__dataclass_fields__, 0), **sizes})


def settings(**changes):
    return replace_settings(CONFIG, "ppo", **changes)


def test_the_footprint_grows_with_what_it_is_said_to_grow_with():
    def of(**changes):
        return footprint(build_program(settings(**changes), market("BBB")), 1)

    ppo = CONFIG.ppo
    base = of()
    more_envs = of(num_envs=2 * ppo.num_envs)
    assert more_envs.rollout > 1.9 * base.rollout
    assert more_envs.environments > 1.5 * base.environments
    assert more_envs.minibatch == base.minibatch
    longer = of(rollout_steps=2 * ppo.rollout_steps)
    assert longer.rollout > 1.9 * base.rollout
    assert longer.environments == base.environments
    larger = of(num_envs=2 * ppo.num_envs, batch_size=2 * ppo.batch_size)
    assert larger.minibatch > 1.5 * base.minibatch


def test_agents_abreast_hold_all_their_rollouts_at_once():
    one, three = (footprint(build_program(CONFIG, market("BBB"), True), n) for n in (1, 3))
    assert three.rollout == 3 * one.rollout
    in_turn = footprint(build_program(CONFIG, market("BBB"), False), 3)
    assert in_turn.rollout == one.rollout
    assert in_turn.agents == three.agents


def test_gradient_checkpointing_keeps_less():
    lean = replace_settings(CONFIG, "network", gradient_checkpointing=True)
    kept = [footprint(build_program(c, market("BBB")), 1).minibatch for c in (CONFIG, lean)]
    assert kept[1] < 0.8 * kept[0]


def test_what_takes_most_is_lowered():
    config = settings(num_envs=64, rollout_steps=128, batch_size=256)
    assert lowered(config, parts(rollout=100 * MIB, minibatch=MIB), None) == {"num_envs": 32}
    assert lowered(config, parts(minibatch=100 * MIB, rollout=MIB), None) == {"batch_size": 128}
    assert lowered(config, parts(rollout=100 * MIB), 20 * MIB) == {"num_envs": 8}


def test_a_single_environment_takes_fewer_steps():
    config = settings(num_envs=1, rollout_steps=256, batch_size=64)
    assert lowered(config, parts(rollout=100 * MIB), None) == {"rollout_steps": 128}


def test_nothing_helps_where_the_market_alone_is_too_large():
    config = settings(num_envs=64, rollout_steps=128, batch_size=256)
    assert lowered(config, parts(market=100 * MIB, rollout=MIB), 50 * MIB) is None


@pytest.mark.parametrize("name", ["guide", "throughput"])
def test_the_advice_on_presets_is_a_valid_setting(name):
    config = load_config(name)
    sizes = parts(environments=MIB, rollout=300 * MIB, minibatch=200 * MIB)
    changes = lowered(config, sizes, 40 * MIB)
    assert ppo_shape(replace_settings(config, "ppo", **changes))


def test_presets_are_found_by_name():
    assert {"guide", "throughput", "quick", "phase3_ppo_baseline"} <= set(presets())
    guide = load_config("guide").ppo
    assert (guide.num_envs, guide.rollout_steps, guide.batch_size) == (128, 2048, 256)
    sizes = {"num_envs": 8, "rollout_steps": 512, "total_timesteps": 400_000}
    baseline = dataclasses.replace(guide, final_learning_rate=0.0, **sizes)
    assert baseline == load_config("phase3_ppo_baseline").ppo


def test_other_errors_of_the_device_pass_through():
    error = jax.errors.JaxRuntimeError("INTERNAL: something else")
    program = build_program(CONFIG, market("BBB"))
    with pytest.raises(type(error), match="something else"), explained(program, 1):
        raise error


_STARVED = """
import resource, sys
import jaxtrader as jt
from jaxtrader.config import load_config, replace_settings
config = replace_settings(load_config("quick"), "ppo", num_envs=2**17, rollout_steps=512)
market = jt.synthetic_market(config=config)
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
try:
    jt.train(market, seeds=[1], total_timesteps=2**26, config=config, quiet=True)
except jt.errors.DeviceMemoryError as error:
    print("told:", error)
"""


@pytest.mark.slow
def test_a_machine_without_memory_is_told_what_to_lower():
    """A real failure to allocate, in a process that may not take more than 6 GiB."""
    done = subprocess.run(
        [sys.executable, "-c", _STARVED],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "told: the device is out of memory" in done.stdout, done.stderr[-2000:]
    assert "--ppo.num-envs 65536" in done.stdout
