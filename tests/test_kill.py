"""kill -9 at random moments of training, then --resume: nothing is lost, and not a bit differs."""

import itertools
import json
import multiprocessing
import os
import random
import select
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import killed_stage5
import pytest
import yaml
from learners import bits
from small_runs import CONFIG, STEPS_PER_UPDATE, write_bars

from jaxtrader import api
from jaxtrader.checkpoints import AgentCheckpoints
from jaxtrader.config import TrainingConfig
from jaxtrader.outputs import OutputLayout
from jaxtrader.program import agent_keys, build_program, hyperparameters

KILLS = 20
UPDATES = 64
SYMBOLS, SEEDS = ("BBB",), (1337, 5)
AGENTS = tuple(itertools.product(SYMBOLS, SEEDS))
# What a kill waits for before it comes, at a random moment. Saves are most of the time.
PHASES = ("loop", "compute", "validate", "journal", "save", "save", "list", "remove", "restore")
PATIENCE = 300.0  # seconds without a word from a process: it hangs


# Importing everything is a third of a start, and is done once: every process is forked off one that
# has imported, and started nothing yet.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["killed_stage5"])


class Process:
    """The command in a process of its own, and what it says it is doing."""

    def __init__(self, arguments: list):
        self._says, tells = FORKS.Pipe(duplex=False)
        self._folder = tempfile.TemporaryDirectory()
        self._errors = Path(self._folder.name) / "errors"
        self._process = FORKS.Process(
            target=killed_stage5.run, args=(tells, self._errors, [*map(str, arguments)])
        )
        self._process.start()
        tells.close()
        self.phase = "start"
        self.errors = ""

    def phases(self, until: float = float("inf")) -> Iterator[str]:
        """Phases as they begin, until the process ends or a moment of the monotonic clock."""
        while True:
            left = min(PATIENCE, until - time.monotonic())
            ready, _, _ = select.select([self._says], [], [], max(left, 0.0))
            said = os.read(self._says.fileno(), 65536) if ready else b""
            if not said:
                assert ready or until < float("inf"), f"nothing happens in {self.phase}"
                return
            for name in said.decode().split():
                self.phase = name
                yield name

    def kill(self) -> bool:
        """Whether it had not ended before."""
        self._process.kill()
        return self.wait() == -signal.SIGKILL

    def wait(self) -> int:
        """Lets it go on until it ends; its exit status."""
        for _ in self.phases():
            pass
        self._says.close()
        self._process.join(PATIENCE)
        status = self._process.exitcode
        assert status is not None, "it has closed its pipe and does not end"
        self._process.close()
        self.errors = self._errors.read_text()
        self._folder.cleanup()
        return status


def arguments(folder: Path, data: Path, keep_best: int = CONFIG.checkpoints.keep_best) -> list:
    values = json.loads(json.dumps(CONFIG.to_dict()))
    values["ppo"]["total_timesteps"] = UPDATES * STEPS_PER_UPDATE
    values["checkpoints"]["keep_best"] = keep_best
    settings = folder.with_suffix(".yaml")
    settings.write_text(yaml.safe_dump(values), encoding="utf-8")
    return [
        "--config", settings, "--data-dir", data, "--symbols", *SYMBOLS, "--seeds", *SEEDS,
        "--output-dir", folder, "--tracking", "off",
    ]  # fmt: skip


def listed(folder: Path) -> Iterator[tuple[tuple, AgentCheckpoints]]:
    """Every agent's checkpoints, as somebody sees them who only looks."""
    for agent in AGENTS:
        path = OutputLayout(folder).checkpoints(*agent)
        if path.is_dir():
            checkpoints = AgentCheckpoints(path, read_only=True)
            yield agent, checkpoints
            checkpoints.close()


def tables(folder: Path) -> dict[str, bytes]:
    """Every table by its path: updates, telemetry and evaluation episodes."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*.csv")}
    # A kill before the first checkpoint of all agents makes the next one begin anew.
    return {name: path.read_bytes() for name, path in found.items() if ".until-" not in name}


def results(folder: Path) -> list[dict]:
    """What the summary says of every agent."""
    *_, last = sorted((folder / "reports" / "stage5_validation").glob("*/summary.json"))
    return json.loads(last.read_text(encoding="utf-8"))["agents"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that nobody kills, and that keeps every checkpoint."""
    folder = tmp_path_factory.mktemp("reference")
    data = write_bars(folder / "data")
    process = Process(arguments(folder / "run", data, keep_best=UPDATES))
    lengths: dict[str, float] = {}  # the longest that each phase took
    moment, before = time.monotonic(), "start"
    for phase in process.phases():
        now = time.monotonic()
        lengths[before] = max(lengths.get(before, 0.0), now - moment)
        moment, before = now, phase
    assert process.wait() in (0, 1), process.errors
    assert set(PHASES) - {"restore"} <= set(lengths)

    config = TrainingConfig.from_dict(yaml.safe_load((folder / "run.yaml").read_text()))
    program = build_program(config, api.load_market(data, SYMBOLS, config))
    keys, hyper = agent_keys(SYMBOLS, SEEDS), hyperparameters(config, UPDATES)
    shape = jax.eval_shape(program.initialize, keys, program.params["train"], hyper)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), shape)
    states = {
        (*agent, update): bits(checkpoints.restore(update, like).state)
        for agent, checkpoints in listed(folder / "run")
        for update in checkpoints.updates()
    }
    assert len(states) == len(AGENTS) * UPDATES // CONFIG.checkpoints.every
    return SimpleNamespace(
        root=folder / "run", data=data, like=like, states=states, lengths=lengths
    )


def assert_everything_listed_is_whole(folder: Path, reference) -> None:
    """Each listed checkpoint can be restored, and is bit for bit what it is without a kill."""
    for agent, checkpoints in listed(folder):
        for update in checkpoints.updates():
            state = checkpoints.restore(update, reference.like).state
            chex.assert_trees_all_equal(bits(state), reference.states[*agent, update])


def assert_same_end(folder: Path, reference) -> None:
    """Parameters, optimizer, walkers; telemetry; evaluation: as if nothing had happened."""
    assert_everything_listed_is_whole(folder, reference)
    for _, checkpoints in listed(folder):
        assert checkpoints.updates()[-2:] == [UPDATES - CONFIG.checkpoints.every, UPDATES]
    assert tables(folder) == tables(reference.root)
    assert results(folder) == results(reference.root)
    leftovers = [p for p in folder.rglob("*") if "tmp" in p.name or p.name == ".deleted"]
    assert leftovers == []


def killed(process: Process, phase: str, rng: random.Random, lengths: dict[str, float]) -> bool:
    """Kills it in one of its next visits to a phase; whether that was in training."""
    visits = 1 if phase in ("loop", "restore") else rng.randint(1, 4)
    within = 3.0 if phase == "loop" else lengths.get(phase, 0.2)  # seconds
    previous = "loop" if phase != "loop" else "start"
    for name in process.phases():
        visits -= name == phase and previous != phase
        previous = name
        if visits == 0:
            for _ in process.phases(until=time.monotonic() + rng.uniform(0.0, within)):
                pass
            return process.kill() and process.phase not in ("evaluate", "report")
    process.wait()
    return False


def chain(folder: Path, reference, seed: int, kills: int) -> Counter:
    """Runs that are killed and resumed until there were so many kills; counted by phase."""
    rng = random.Random(seed)
    folder.mkdir()
    phases = itertools.cycle(rng.sample(PHASES, len(PHASES)))
    tally: Counter = Counter()
    for number in itertools.count():
        root = folder / str(number)
        options = arguments(root, reference.data)
        process = Process(options)
        while killed(process, "loop" if not tally else next(phases), rng, reference.lengths):
            tally[process.phase] += 1
            assert_everything_listed_is_whole(root, reference)
            if tally.total() == kills:
                break
            process = Process([*options, "--resume"])
        assert Process([*options, "--resume"]).wait() in (0, 1)
        assert_same_end(root, reference)
        if tally.total() == kills:
            return tally


@pytest.mark.slow
def test_kill_nine_twenty_times_and_not_a_bit_differs(reference, tmp_path, capsys):
    """Two runs at a time, each killed at random moments and resumed until it has finished."""
    with ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(chain, tmp_path / str(seed), reference, seed, KILLS // 2) for seed in (1, 2)
        ]
        tally = sum((future.result() for future in futures), Counter())
    with capsys.disabled():
        print(f"\n{tally.total()} kills: " + ", ".join(f"{n} in {p}" for p, n in tally.items()))
    assert tally.total() == KILLS
    assert len(tally) >= 4
