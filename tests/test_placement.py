"""Agents on a mesh of devices: who computes what, and that the results do not depend on it."""

import itertools
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtrader.errors import ConfigError
from jaxtrader.placement import AXES, device_mesh

PATIENCE = 500.0  # seconds that four devices may take to compile and train on a busy machine


# ------------------------------------------------------------------------------------- the mesh


@dataclass(frozen=True)
class Device:
    """As much of a device as a mesh looks at."""

    id: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "invented"


def devices_of(*processes: int) -> list[Device]:
    """As many devices of each process as said."""
    owners = [process for process, count in enumerate(processes) for _ in range(count)]
    return [Device(number, process) for number, process in enumerate(owners)]


def possible_meshes(work: tuple[int, ...], processes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every shape that gives all devices, and all processes, equal work."""
    return [
        shape
        for shape in itertools.product(*(range(1, part + 1) for part in work))
        if all(part % axis == 0 for part, axis in zip(work, shape, strict=True))
        and any(np.prod(shape) == share * len(processes) for share in range(1, min(processes) + 1))
    ]


@given(
    work=st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 8)),
    processes=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    shuffle=st.randoms(),
)
def test_a_mesh_divides_the_work_evenly_among_as_many_devices_as_possible(work, processes, shuffle):
    devices = devices_of(*processes)
    shuffle.shuffle(devices)
    possible = possible_meshes(work, processes)
    if not possible:
        with pytest.raises(ConfigError, match=f"among {len(processes)} processes"):
            device_mesh(*work, devices)
        return
    mesh = device_mesh(*work, devices)
    assert mesh.axis_names == AXES
    shape = tuple(mesh.shape[axis] for axis in AXES)
    assert shape in possible
    # No other keeps more devices busy, and of those that keep as many none spreads more agents.
    size, agents = np.prod(shape), np.prod(shape[:2])
    assert size == max(map(np.prod, possible))
    assert agents == max(np.prod(other[:2]) for other in possible if np.prod(other) == size)
    used = list(mesh.devices.ravel())
    assert len(set(used)) == len(used)
    assert set(used) <= set(devices)
    shares = Counter(device.process_index for device in used)
    assert set(shares) == set(range(len(processes)))
    assert len(set(shares.values())) == 1


@pytest.mark.parametrize(
    ("work", "processes", "shape"),
    [
        ((1, 1, 1), (1,), (1, 1, 1)),
        ((1, 1, 1), (8,), (1, 1, 1)),
        ((2, 2, 1), (4,), (2, 2, 1)),
        ((2, 2, 4), (4,), (2, 2, 1)),  # agents before environments
        ((1, 3, 1), (4,), (1, 3, 1)),  # one device has nothing to do
        ((1, 3, 4), (4,), (1, 1, 4)),  # rather than that
        ((5, 16, 1), (8,), (1, 8, 1)),
        ((1, 2, 1), (1, 1), (1, 2, 1)),
        ((1, 2, 1), (4, 4), (1, 2, 1)),
        ((1, 6, 1), (4, 3), (1, 6, 1)),  # three of each
        ((143, 3, 1), (8, 8), None),  # an odd number of agents for two
        ((1, 1, 1), (1, 1), None),
    ],
)
def test_meshes_by_hand(work, processes, shape):
    if shape is None:
        with pytest.raises(ConfigError, match=r"cannot be shared out evenly.*name more seeds"):
            device_mesh(*work, devices_of(*processes))
    else:
        assert device_mesh(*work, devices_of(*processes)).devices.shape == shape


# ------------------------------------------------------------------------- four devices and one


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """What a process with four devices has found out."""
    command = [sys.executable, Path(__file__).with_name("four_devices.py")]
    done = subprocess.run(
        [*command, tmp_path_factory.mktemp("four")],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["devices"] == 4
    return facts


ONE_DEVICE = {"symbols": 1, "seeds": 1, "environments": 1}


@pytest.mark.slow
def test_agents_on_four_devices_are_to_the_bit_those_on_one(four):
    """States, records, validations and best parameters after several updates."""
    facts = four["agents"]
    assert facts["meshes"] == [{"symbols": 2, "seeds": 2, "environments": 1}, ONE_DEVICE]
    assert facts["parts"] == {"state": [4], "played": [4], "market": [2]}
    assert facts["agents_differ"]
    assert facts["differing"] == []
    assert facts["played"] == []


@pytest.mark.slow
@pytest.mark.parametrize("moved", ["four_to_one", "one_to_four"])
def test_a_run_goes_on_on_another_number_of_devices(four, moved):
    """And ends on the bits of one that nothing has interrupted."""
    assert four["agents"][moved] == []


@pytest.mark.slow
def test_devices_with_agents_of_their_own_do_not_talk(four):
    assert four["agents"]["collectives"] == []
    # A test that finds nothing has to be able to.
    assert four["environments"]["collectives"] != []


@pytest.mark.slow
def test_each_program_is_compiled_once(four):
    """For four devices and for one; calls, checkpoints and resuming add nothing."""
    twice = {"_initialize": 2, "_run_updates": 2, "_play": 2}
    assert four["agents"]["compiled_once"] == twice
    assert four["agents"]["compiled"] == twice


@pytest.mark.slow
def test_three_seeds_with_a_frozen_encoder_on_three_of_four_devices(four):
    facts = four["frozen_seeds"]
    assert facts["mesh"] == {**ONE_DEVICE, "seeds": 3}
    assert facts["parts"] == [[3], [3]]
    assert facts["tables"] == []
    assert facts["differing"] == []
    assert facts["encoder"] == []


@pytest.mark.slow
def test_environments_of_one_agent_on_four_devices_agree_with_one_to_rounding(four):
    """Sums over environments are made of four parts, in another order.

    Measured differences are below 1e-7 in parameters that sixteen steps of Adam have moved by some
    4e-3. Adam divides gradients by their own size, which makes the rounding of small ones count.
    """
    facts = four["environments"]
    assert facts["mesh"] == {**ONE_DEVICE, "environments": 4}
    assert facts["parts"] == [[4], [1]]  # each has its environments, and all have the parameters
    assert facts["moved"] > 2e-3
    assert facts["params"] < 1e-5
    assert max(facts["metrics"].values()) < 1e-4
    assert facts["walkers"] == []


@pytest.mark.slow
@pytest.mark.parametrize("encoded", ["collectives", "collectives_of_table"])
def test_devices_that_share_an_agent_exchange_one_sum_a_minibatch(four, encoded):
    """Nothing in a rollout's steps, the moments of advantages once an epoch, a few once an update.

    Whether minibatches encode their own blocks or the whole market.
    """
    found = four["environments"][encoded]
    assert {kind for kind, _ in found} == {"all-reduce"}
    loops = Counter(origin.count("while/body") for _, origin in found)
    update = min(loops)
    assert loops.keys() == {update, update + 1, update + 2}
    assert loops[update + 2] == 1
    assert loops[update + 1] == 3
    assert loops[update] <= 10
