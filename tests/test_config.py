"""Settings: YAML fills typed dataclasses, and every mistake is named with a remedy."""

import json
from pathlib import Path

import pytest
import yaml

from jaxtrader.config import (
    DataConfig,
    EnvironmentConfig,
    EvaluationConfig,
    PPOConfig,
    TrainingConfig,
    default_config_path,
    load_config,
    replace_settings,
)
from jaxtrader.errors import ConfigError, JaxtraderError

BASELINE = Path(__file__).resolve().parents[1] / "configs" / "phase3_ppo_baseline.yaml"


@pytest.fixture
def written(tmp_path):
    """Writes text as settings.yaml and gives its path."""

    def write(text: str) -> Path:
        path = tmp_path / "settings.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_yaml_fills_every_kind_of_field(written):
    path = written(
        """
        data: {timeframe: 15Min, synthetic_sessions: 120}
        environment: {costs: stage5, commission: 0.001, lot_size: 1}
        reward: {weights: {hold: 0, diversity_bonus: 0.5}}
        network: {channels: 8, dilations: [1, 2, 4]}
        ppo: {learning_rate: 3e-4, target_kl: 0.02, total_timesteps: 1_000}
        guard: {enabled: false}
        """
    )
    config = load_config(path)

    assert config.data == DataConfig(timeframe="15Min", synthetic_sessions=120)
    assert config.environment == EnvironmentConfig(costs="stage5", commission=0.001, lot_size=1.0)
    assert type(config.environment.lot_size) is float
    assert config.reward.weights == {"hold": 0.0, "diversity_bonus": 0.5}
    assert config.network.channels == 8
    assert config.network.dilations == (1, 2, 4)
    assert config.network.receptive_field == 8
    assert config.ppo == PPOConfig(learning_rate=0.0003, target_kl=0.02, total_timesteps=1000)
    assert config.guard.enabled is False
    assert config.evaluation == EvaluationConfig()  # left out: the defaults


def test_an_empty_file_is_all_defaults(written):
    assert load_config(written("# nothing yet\n")) == TrainingConfig()
    assert load_config(written("ppo: {target_kl: null}\n")) == TrainingConfig()


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("pppo: {}", "pppo", "ppo"),
        ("enviroment: {costs: free}", "enviroment", "environment"),
        ("ppo: {learning_rte: 0.1}", "learning_rte", "learning_rate"),
        ("network: {channel: 8}", "channel", "channels"),
        ("environment: {comission: 0}", "comission", "commission"),
        ("reward: {weights: {realised_pnl: 1}}", "realised_pnl", "realized_pnl"),
        ("7: 8", "7", None),
    ],
)
def test_an_unknown_key_names_file_key_and_the_nearest(written, text, key, nearest):
    path = written(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert str(path) in message
    assert f"unknown key {key!r}" in message or f"unknown key {key}" in message
    if nearest:
        assert f"did you mean {nearest!r}" in message
    section = text.split(":")[0]
    if "{" in text and key != section:
        assert f"{path}: {section}:" in message


@pytest.mark.parametrize(
    ("text", "where", "found"),
    [
        ("ppo: {num_envs: 2.5}", "ppo: num_envs", "2.5"),
        ("ppo: {num_envs: '8'}", "ppo: num_envs", "'8'"),
        ("ppo: {num_envs: true}", "ppo: num_envs", "True"),
        ("ppo: {learning_rate: fast}", "ppo: learning_rate", "'fast'"),
        ("ppo: {learning_rate: true}", "ppo: learning_rate", "True"),
        ("ppo: {learning_rate: null}", "ppo: learning_rate", "None"),
        ("guard: {enabled: 1}", "guard: enabled", "1"),
        ("data: {timeframe: 60}", "data: timeframe", "60"),
        ("environment: {costs: cheap}", "environment: costs", "'cheap'"),
        ("network: {dilations: 3}", "network: dilations", "3"),
        ("network: {dilations: [1, two]}", "network: dilations", "'two'"),
        ("reward: {weights: [1]}", "reward: weights", "[1]"),
        ("reward: {weights: {hold: much}}", "reward: weights.hold", "'much'"),
        ("ppo: 3", "ppo", "3"),
        ("- ppo", "", "['ppo']"),
    ],
)
def test_a_wrong_type_names_file_key_and_value(written, text, where, found):
    path = written(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: {where}" if where else f"{path}: ")
    assert found in str(caught.value)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("ppo: {learning_rate: 0}", "learning_rate"),
        ("ppo: {gamma: 1.5}", "gamma"),
        ("ppo: {gamma: .nan}", "gamma"),
        ("ppo: {total_timesteps: -1}", "total_timesteps"),
        ("ppo: {target_kl: -0.1}", "target_kl"),
        ("ppo: {entropy_coef: -0.01}", "entropy_coef"),
        ("environment: {position_cap: 1.2}", "position_cap"),
        ("environment: {lot_size: -1}", "lot_size"),
        ("environment: {commission: -0.001}", "commission"),
        ("environment: {slippage: 1.5}", "slippage"),
        ("environment: {bankruptcy_equity: -0.5}", "bankruptcy_equity"),
        ("data: {train_share: 0.9}", "train_share + validation_share + test_share"),
        ("reward: {pnl_scale: 0}", "pnl_scale"),
        ("guard: {patience: 0}", "patience"),
        ("guard: {warm_up_steps: -1}", "warm_up_steps"),
        ("checkpoints: {every: 0}", "every"),
        ("evaluation: {episodes: 0}", "episodes"),
        ("evaluation: {seed: -1}", "seed"),
        ("network: {channels: 0}", "network.channels"),
        ("network: {hidden: -4}", "network.hidden"),
        ("network: {dilations: []}", "network.dilations"),
        ("network: {dilations: [1, 0]}", "network.dilations"),
        ("network: {logit_cap: .inf}", "network.logit_cap"),
        ("ppo: {learning_rate: .inf}", "ppo.learning_rate"),
        ("ppo: {final_learning_rate: -1}", "final_learning_rate"),
        ("ppo: {final_entropy_coef: .nan}", "final_entropy_coef"),
        ("ppo: {num_envs: 9999999999}", "ppo.num_envs"),
        ("ppo: {total_timesteps: 99999999999999999}", "total_timesteps"),
        ("environment: {add_threshold: .nan}", "environment.add_threshold"),
        ("reward: {weights: {hold: .inf}}", "reward.weights"),
        ("guard: {threshold: .nan}", "guard.threshold"),
        ("data: {synthetic_seed: -1}", "synthetic_seed"),
    ],
)
def test_a_value_out_of_range_names_file_key_and_rule(written, text, key):
    path = written(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert f"{key} = " in message
    assert "must be" in message


def test_a_missing_file_names_one_that_works(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load_config(tmp_path / "absent.yaml")
    assert "absent.yaml" in str(caught.value)
    for name in ("guide", str(default_config_path().parent)):
        assert name in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)  # a folder


@pytest.mark.parametrize("text", ["ppo: {num_envs: 8", "a: b: c", "\tppo: {}"])
def test_malformed_yaml_is_an_error_of_the_family(written, text):
    path = written(text)
    with pytest.raises(ConfigError, match="is not valid YAML") as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, JaxtraderError)


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("ppo: {gamma: 0.9}\nguard: {}\nppo: {gamma: 0.8}\n", "ppo", (1, 3)),
        ("ppo:\n  gamma: 0.9\n  'gamma': 0.8\n", "gamma", (2, 3)),
        ("reward: {weights: {hold: 1, hold: 1}}", "hold", (1, 1)),
    ],
)
def test_a_key_given_twice_names_itself_and_both_lines(written, text, key, lines):
    """YAML's own reader would take the last and say nothing."""
    path = written(text)
    with pytest.raises(ConfigError, match="is not valid YAML") as caught:
        load_config(path)
    message = str(caught.value)
    assert str(path) in message
    assert f"key '{key}' in line {lines[1]} is already in line {lines[0]}" in message
    assert "keep one" in message


def test_a_key_may_override_what_it_is_merged_with(written):
    text = "ppo: &base {gamma: 0.9, clip_ratio: 0.3}\n"
    config = load_config(written(f"{text}guard: {{}}\n"))
    assert (config.ppo.gamma, config.ppo.clip_ratio) == (0.9, 0.3)
    merged = written("network: &n {channels: 8}\nppo: {<<: {gamma: 0.9}, gamma: 0.8}\n")
    assert load_config(merged).ppo.gamma == 0.8


@pytest.mark.parametrize(
    "text",
    [
        "ppo: {gamma: !!int 'x'}",  # each lets another error of Python's through
        "ppo: {gamma: !!float 'x'}",
        "ppo: {gamma: !!bool maybe}",
        "ppo: {gamma: !!timestamp x}",
        "data: {synthetic_seed: 2024-13-45}",
        "ppo: {gamma: " + "9" * 5000 + "}",
        "[" * 5000,
        "ppo: {{}: 1}",
        "ppo: *unknown",
        "--- {}\n--- {}\n",
        "ppo: \x00",
    ],
)
def test_whatever_the_reader_stumbles_over_is_an_error_of_the_family(written, text):
    path = written(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 1000


def test_a_message_does_not_repeat_gigabytes(written):
    """A few lines that stand for 10^9 strings, and one that holds itself."""
    nested = "&a0 [x, x, x, x, x, x, x, x, x, x]"
    for i in range(1, 9):
        nested = f"&a{i} [{nested}, {', '.join([f'*a{i - 1}'] * 9)}]"
    for text in (f"ppo: {{gamma: {nested}}}", f"x: {nested}", "ppo: {gamma: &a [*a]}"):
        with pytest.raises(ConfigError) as caught:
            load_config(written(text))
        assert len(str(caught.value)) < 1000


def test_bytes_that_are_not_text(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_bytes(b"ppo: \xff\xfe")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_config(path)


@pytest.mark.parametrize(
    "text",
    [
        "ppo: !!python/object/apply:pathlib.Path.touch [{marker}]",
        "!!python/object/apply:os.system ['touch {marker}']",
        "data: !!python/name:os.system",
    ],
)
def test_python_objects_in_yaml_are_refused_and_not_run(written, tmp_path, text):
    marker = tmp_path / "executed"
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_config(written(text.format(marker=marker)))
    assert not marker.exists()


def test_a_dictionary_there_and_back():
    config = TrainingConfig()
    config = replace_settings(config, "network", dilations=(1, 3), channels=4)
    config = replace_settings(config, "ppo", target_kl=0.01, final_learning_rate=1e-5)
    config = replace_settings(config, "reward", weights={"hold": 0.25})
    assert TrainingConfig.from_dict(config.to_dict()) == config

    through_json = json.loads(json.dumps(config.to_dict()))
    assert TrainingConfig.from_dict(through_json) == config
    through_yaml = yaml.safe_load(yaml.safe_dump(through_json))
    assert TrainingConfig.from_dict(through_yaml) == config


def test_replacing_leaves_what_is_none():
    config = TrainingConfig()
    changed = replace_settings(config, "ppo", num_envs=3, learning_rate=None)
    assert changed.ppo == PPOConfig(num_envs=3)
    assert changed.environment is config.environment
    with pytest.raises(ConfigError, match="num_envs = 0"):
        replace_settings(config, "ppo", num_envs=0)


def test_the_baseline_is_the_guides():
    """The guide's PPO table, and its entropy guard."""
    config = load_config(BASELINE)
    ppo, guard = config.ppo, config.guard
    assert ppo.learning_rate == 3e-4
    assert ppo.batch_size == 256
    assert ppo.num_epochs == 10
    assert ppo.gamma == 0.99
    assert ppo.gae_lambda == 0.95
    assert ppo.clip_ratio == 0.2
    assert ppo.value_coef == 0.5
    assert ppo.entropy_coef == 0.01
    assert ppo.max_grad_norm == 0.5
    assert ppo.reward_normalization == "running_mean"
    assert (guard.threshold, guard.warm_up_steps, guard.boost) == (0.22, 4000, 1.7)
    assert (config.checkpoints.every, config.checkpoints.keep_best) == (10, 3)
    assert (config.environment.costs, config.environment.fill) == ("retail", "next_open")


def test_the_baseline_and_the_defaults_agree():
    """A default lives in one place: what the file spells out is what the library does anyway."""
    assert load_config(BASELINE) == TrainingConfig()


def test_the_default_file_is_found():
    assert default_config_path() == BASELINE
    assert load_config(default_config_path()) == load_config(BASELINE)
