"""Two processes that train as one, over the loopback interface."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from small_runs import CONFIG, QUIET

from experiments import stage5

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 400.0  # seconds that a process may take on a busy machine; then it hangs
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# All compile the same, one process out of several without the cache, and optimising takes longest.
SETTINGS = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}


def environment(**variables: str) -> dict[str, str]:
    """That of the tests, but for what says that there are several processes, and `variables`."""
    foreign = re.compile(r"SLURM_|OMPI_|PMI_|KUBERNETES_|XLA_FLAGS|" + "|".join(VARIABLES))
    kept = {name: value for name, value in os.environ.items() if not foreign.match(name)}
    return {**kept, **SETTINGS, "PYTHONPATH": str(ROOT), **variables}


def outcomes(commands: list[list], number: int, cwd: Path) -> list[tuple[int, str, str]]:
    """(exit status, output, errors) of several commands at once; those that hang are killed.

    The first `number` of them are processes that train together.
    """
    address = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=environment(
                **dict(zip(VARIABLES, (address, str(number), str(place)), strict=True))
                if place < number
                else {}
            ),
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for place, command in enumerate(commands)
    ]
    try:
        said = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [(p.returncode, *words) for p, words in zip(processes, said, strict=True)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(facts, arrays) of both processes and of one alone, and the folder of the first two."""
    folder, alone = tmp_path_factory.mktemp("together"), tmp_path_factory.mktemp("alone")
    script = Path(__file__).with_name("two_hosts.py")
    facts = []
    commands = [[script, folder], [script, folder], [script, alone]]
    for status, output, errors in outcomes(commands, 2, ROOT):
        assert status == 0, errors[-3000:]
        facts.append(json.loads(output.splitlines()[-1]))
    files = [folder / "arrays_0.npz", folder / "arrays_1.npz", alone / "arrays_alone.npz"]
    return facts, [dict(np.load(file)) for file in files], folder / "run"


@pytest.mark.slow
def test_two_processes_end_on_the_bits_of_one(trained):
    """Although one of them was stopped after an update, and both went on from the checkpoints."""
    facts, (first, second, alone), _ = trained
    assert [each["mesh"]["seeds"] for each in facts] == [2, 2, 2]
    assert [each["own_agents"] for each in facts] == [1, 1, 2]
    for each in facts[:2]:
        assert "stopped after update 1 of 4; the state is saved" in each["interrupted"]
        assert each["resumed_at"] == 1
    assert facts[0]["tables"] == facts[2]["tables"]  # the other has not read the record
    assert len(alone) > 50
    for other in (first, second):
        assert other.keys() == alone.keys()
        different = [name for name in alone if other[name].tobytes() != alone[name].tobytes()]
        assert different == []
    assert alone["state/update"].tolist() == [[4, 4]]
    kernel = alone["state/params/heads/actor/kernel"]
    assert not np.array_equal(kernel[0, 0], kernel[0, 1])


@pytest.mark.slow
def test_only_the_first_process_writes(trained):
    (first, second, _), _, folder = trained
    assert first["first_holds"] == [2, 2]
    assert first["locks"] == 2
    assert any("updates.csv" in line for line in first["written"])
    assert second["first_holds"] == [0, 0]
    assert second["locks"] == 0
    assert second["written"] == []
    assert list(folder.rglob("*.until-*")) == []  # nobody has moved aside what the other made
    assert len(list(folder.rglob("updates.csv"))) == 2  # one for each seed


@pytest.mark.slow
def test_what_is_spread_over_processes_comes_whole_to_each(trained):
    """Arrays of every type, spread in every way, beside what is no array of JAX's at all."""
    for place, facts in enumerate(trained[0][:2]):
        exchanged = facts["exchanged"]
        assert exchanged["wrong"] == []
        assert {"rows", "columns", "both", "everywhere", "keys"} <= set(exchanged["spread"])
        assert exchanged["keys_are_keys"]
        assert exchanged["on_the_host"]
        assert exchanged["first"] == (place == 0)


@pytest.mark.slow
def test_what_one_process_decides_all_do(trained):
    for facts in trained[0][:2]:
        assert facts["exchanged"]["agreed"] == 10
        assert facts["exchanged"]["anywhere"] == [True, True, False]


@pytest.mark.slow
def test_more_processes_than_agents_are_refused(trained):
    for facts in trained[0][:2]:
        assert "1 symbols x 1 seeds x 1 groups" in facts["one_agent"]
        assert "cannot be shared out evenly among 2 processes" in facts["one_agent"]
        assert "name more seeds" in facts["one_agent"]
    assert "one_agent" not in trained[0][2]


# ------------------------------------------------------------------------------- the command line


def stage5_command(folder: Path, *options) -> list:
    values = json.loads(json.dumps(CONFIG.to_dict()))
    values["ppo"]["total_timesteps"] = 256
    values["evaluation"]["perfect_foresight"] = False
    settings = folder / "settings.yaml"
    settings.write_text(yaml.safe_dump(values), encoding="utf-8")
    return [
        "-m", "experiments.stage5", "--config", settings, "--output-dir", folder / "out",
        "--tracking", "off", *options,
    ]  # fmt: skip


@pytest.mark.slow
def test_stage5_by_two_processes_makes_one_report(tmp_path):
    command = stage5_command(tmp_path, "--seeds", 1, 2, "--distributed")
    first, second = outcomes([command, command], 2, tmp_path)
    assert first[0] in (0, 1), first[2][-3000:]  # two updates pass no gate for certain
    assert second[0] == 0, second[2][-3000:]
    [summary] = (tmp_path / "out").rglob("summary.json")
    agents = json.loads(summary.read_text(encoding="utf-8"))["agents"]
    assert [agent["seed"] for agent in agents] == [1, 2]
    assert all(agent["policy"]["parity"]["passed"] for agent in agents)
    assert "summary.md" in first[1]
    # What connects the processes speaks for itself.
    said = [line for line in second[1].splitlines() if not line.startswith("[Gloo]")]
    assert said == []


@pytest.mark.parametrize("extended", [True, False])
def test_the_first_process_decides_whether_training_is_extended(monkeypatch, extended):
    """After a resume it alone has the record of what came before; the others must not differ."""
    trained = []
    monkeypatch.setattr(stage5, "start_run", lambda *_: None)
    monkeypatch.setattr(stage5, "train", lambda run, steps, console: trained.append(steps))
    monkeypatch.setattr(stage5, "cleared_gates", lambda *_: {"seed 1": not extended})
    monkeypatch.setattr(stage5, "agreed", lambda own: int(extended))
    monkeypatch.setattr(stage5, "is_first", lambda: False)
    program = SimpleNamespace(config=CONFIG)
    arguments = SimpleNamespace(skip_training=False, resume=False, seeds=(1,), extend_to=9_999)
    _, extended_to = stage5.train_agents(program, arguments, None, None, QUIET)
    steps = CONFIG.ppo.total_timesteps
    assert (trained, extended_to) == (([steps, 9_999], 9_999) if extended else ([steps], None))


def test_distributed_needs_to_be_told_of_the_others(tmp_path):
    """At once: JAX's own patience with processes that do not come is five minutes."""
    [(status, _, errors)] = outcomes([stage5_command(tmp_path, "--distributed")], 0, tmp_path)
    assert status == 2, errors[-3000:]
    said = " ".join(errors.split())
    assert "--distributed: the processes did not find each other" in said
    for variable in VARIABLES:
        assert variable in said
    assert not (tmp_path / "out").exists()
