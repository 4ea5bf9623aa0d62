"""Stage 5: train symbol agents with several seeds at once, evaluate them, and hold them to gates.

    python -m experiments.stage5 --seeds 42 1337 9001
    python -m experiments.stage5 --data-dir DIR --symbols SPY --seeds 42 1337 9001

Exit status: 0 when every agent passes every gate, 1 when a gate (or a test asked for with
--run-pytest) fails, 2 on bad input, 130 when interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro
from rich.console import Console

from jaxtrader import api
from jaxtrader.config import (
    TrainingConfig,
    default_config_path,
    load_config,
    replace_settings,
)
from jaxtrader.data import Dataset
from jaxtrader.deployment import (
    ExportedPolicy,
    export_agent,
    require_torch,
    sample_observations,
)
from jaxtrader.errors import ConfigError, DataError, ExportError, JaxtraderError
from jaxtrader.evaluation.evaluate import Evaluation, evaluate_agents, random_starts
from jaxtrader.evaluation.foresight import ForesightCeiling, foresight_ceiling
from jaxtrader.files import new_folder, timestamp, write_whole
from jaxtrader.gates import gate_table
from jaxtrader.hosts import agreed, is_first, join_hosts, to_host
from jaxtrader.outputs import OutputLayout
from jaxtrader.program import Program, build_program
from jaxtrader.reporting.figures import equity_figure
from jaxtrader.reporting.html import render_html
from jaxtrader.reporting.markdown import render_markdown
from jaxtrader.reporting.summary import build_summary, gate_results
from jaxtrader.runs import TrainingRun, restore_run, start_run, stored_config
from jaxtrader.runtime import (
    be_deterministic,
    use_compilation_cache,
    use_cpu_cores,
    use_full_precision,
)
from jaxtrader.tracking.session import Session, Tracking, recorded
from jaxtrader.training import Interrupted, cleared_gates, train

ROOT = Path(__file__).resolve().parents[1]  # of the checkout
REPORT_VARIABLE = "JAXTRADER_STAGE5_REPORT"  # tells --run-pytest's tests which report is meant


@dataclass(frozen=True)
class Arguments:
    """Train symbol agents, evaluate them out of sample, and hold them to the stage-5 gates."""

    config: Path = field(default_factory=default_config_path)
    """YAML file with settings, or the name of one that comes with the library: guide, quick,
    throughput. Keys that it leaves out keep their defaults."""
    data_dir: Path | None = None
    """Folder with historical/<SYMBOL>/<timeframe>/data.parquet. Default: ./data when --symbols are
    named and it holds a historical folder, else the embedded synthetic market."""
    symbols: tuple[str, ...] = ()
    """Symbols to train, one agent per symbol and seed. Default: SPY with --data-dir, else SYNTH."""
    seeds: tuple[int, ...] = (42, 1337, 9001)
    """Seeds, trained together in one program."""
    total_timesteps: int | None = None
    """Environment steps of each seed (rounded up to whole updates). Default: the config's."""
    extend_to: int | None = None
    """Go on to this many steps if, at 80 % of the first run, every seed's training episodes had
    cleared the entropy and voluntary-trade gates. Schedules then run to the new length."""
    n_envs: int | None = None
    """Environments per seed. Default: the config's."""
    evaluation_episodes: int | None = None
    """Random-start evaluation episodes. Default: the config's."""
    evaluation_split: Literal["train", "validation", "test"] | None = None
    """Split to evaluate on. Default: the config's."""
    skip_training: bool = False
    """Evaluate the existing checkpoints under --output-dir, with the settings stored in them."""
    resume: bool = False
    """Go on from the latest checkpoints under --output-dir."""
    run_pytest: bool = False
    """Run pytest on the results afterwards; a failing test makes the exit status 1."""
    pytest_args: tuple[str, ...] = ("tests/test_stage5_validation.py",)
    """What pytest is given."""
    output_dir: Path = Path()
    """Folder under which reports/, logs/ and models/ are written."""
    tracking: Tracking = "auto"
    """Whether MLflow follows the run: auto, where it is installed. It is kept in the database
    mlflow.db under --output-dir, or by the server that MLFLOW_TRACKING_URI names. Runs that it has
    not followed are uploaded later by python -m jaxtrader upload-runs."""
    distributed: bool = False
    """This is one of several processes, each started with the same options, that train together:
    with srun, as a Kubernetes job, or with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID set. They share --output-dir; the first of them evaluates and reports."""
    nondeterministic: bool = False
    """Give up that the same seed gives the same bits on an accelerator, for some speed."""
    settings: Annotated[TrainingConfig, tyro.conf.arg(name="")] = field(
        default_factory=TrainingConfig
    )
    """Single settings, over those of --config."""


def parse_arguments(argv: list[str]) -> Arguments:
    """Command line over YAML over defaults.

    Raises:
      ConfigError: the YAML file is missing or wrong, or options contradict each other.
      SystemExit: an unknown option (status 2) or --help (status 0).
    """
    path = default_config_path()
    for i, argument in enumerate(argv):
        if argument == "--config" and i + 1 < len(argv):
            path = Path(argv[i + 1])
        elif argument.startswith("--config="):
            path = Path(argument.removeprefix("--config="))
    arguments = tyro.cli(
        Arguments,
        args=argv,
        default=Arguments(config=path, settings=load_config(path)),
        prog="python -m experiments.stage5",
        description=__doc__,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    if arguments.symbols and arguments.data_dir is None and Path("data/historical").is_dir():
        arguments = dataclasses.replace(arguments, data_dir=Path("data"))
    _check(arguments)
    settings = replace_settings(
        arguments.settings,
        "ppo",
        total_timesteps=arguments.total_timesteps,
        num_envs=arguments.n_envs,
    )
    settings = replace_settings(
        settings,
        "evaluation",
        episodes=arguments.evaluation_episodes,
        split=arguments.evaluation_split,
    )
    default = ("SPY",) if arguments.data_dir else ("SYNTH",)
    return dataclasses.replace(arguments, settings=settings, symbols=arguments.symbols or default)


def _check(arguments: Arguments) -> None:
    if arguments.symbols and arguments.data_dir is None:
        raise ConfigError(
            f"--symbols {' '.join(arguments.symbols)} needs --data-dir, the folder with its bars; "
            "leave --symbols out to train on the embedded synthetic market"
        )
    for name in ("seeds", "symbols"):
        values = getattr(arguments, name)
        if len(set(values)) < len(values):
            raise ConfigError(f"--{name} {' '.join(map(str, values))}: names one twice")
    if not arguments.seeds or not all(0 <= seed < 2**32 for seed in arguments.seeds):
        raise ConfigError(f"--seeds {arguments.seeds}: give integers from 0 to 2^32 - 1")
    stored = load_config(arguments.config)
    for section in dataclasses.fields(TrainingConfig):
        asked = getattr(arguments.settings, section.name)
        differs = section.name != "evaluation" and asked != getattr(stored, section.name)
        if arguments.skip_training and differs:
            raise ConfigError(
                f"--{section.name}.*: --skip-training evaluates with the settings stored in the "
                "checkpoints; leave the option out, or train with it"
            )
    if arguments.skip_training and arguments.distributed:
        raise ConfigError("--skip-training is work for one process: leave out --distributed")
    if arguments.skip_training and (arguments.resume or arguments.extend_to):
        raise ConfigError("--skip-training evaluates only: leave out --resume and --extend-to")
    steps = arguments.total_timesteps or arguments.settings.ppo.total_timesteps
    if arguments.extend_to is not None and arguments.extend_to <= steps:
        raise ConfigError(
            f"--extend-to {arguments.extend_to} must be more than the first run's {steps} steps"
        )


def load_data(arguments: Arguments, config: TrainingConfig) -> Dataset:
    """The dataset of the command line: real with --data-dir, else synthetic."""
    if arguments.data_dir is None:
        return api.synthetic_market(arguments.symbols, config)
    return api.load_market(arguments.data_dir, arguments.symbols, config)


def announce(program: Program, arguments: Arguments, console: Console) -> None:
    """Says what is trained on what."""
    shape, config = program.learner.shape, program.config
    for line in program.dataset.describe():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    agents = len(arguments.symbols) * len(arguments.seeds)
    console.print(
        f"{agents} agent{'s' * (agents > 1)}, each {shape.num_envs} environments x "
        f"{shape.rollout_steps} steps an update; costs {config.environment.costs}, "
        f"fill {config.environment.fill}, reward {config.reward.preset}",
        soft_wrap=True,
    )
    if config.environment.fill == "same_close":
        console.print("fill same_close is optimistic: orders fill at a price already seen")


def train_agents(
    program: Program,
    arguments: Arguments,
    layout: OutputLayout,
    session: Session,
    console: Console,
) -> tuple[TrainingRun, int | None]:
    """Trains, resumes or restores; returns the run and the length it was extended to, if it was."""
    if arguments.skip_training:
        run = restore_run(program, arguments.seeds, layout, to_train=False)
        session.evaluates(run)
        return run, None
    steps = program.config.ppo.total_timesteps
    if arguments.resume:
        run = restore_run(program, arguments.seeds, layout, to_train=True)
        console.print(f"resuming after update {run.update}, {run.steps:,} steps per seed")
    else:
        run = start_run(program, arguments.seeds, steps, layout)
    if is_first():
        session.trains(run, resumed=arguments.resume)
    train(run, steps, console)
    if arguments.extend_to is None:
        return run, None
    cleared = cleared_gates(run, steps)
    if not agreed(all(cleared.values())):  # after a resume the first alone knows what came before
        missing = ", ".join(name for name, ok in cleared.items() if not ok)
        console.print(f"not extended: entropy or voluntary trade rate not cleared by {missing}")
        return run, None
    console.print(f"all agents cleared entropy and voluntary trades: on to {arguments.extend_to:,}")
    train(run, arguments.extend_to, console)
    return run, arguments.extend_to


def export_agents(
    run: TrainingRun, evaluations: list[list[Evaluation]], split: str, layout: OutputLayout
) -> list[list[ExportedPolicy | ExportError]]:
    """One TorchScript policy per agent, each replayed without JAX; or why there is none.

    What was trained and evaluated is worth a report even where a policy cannot be written.
    """
    from jaxtrader.export import ParityProcess

    observations = sample_observations(run.program, run.best_params, split)
    exports: list[list[ExportedPolicy | ExportError]] = [[] for _ in run.program.dataset.symbols]
    with ParityProcess() as process:
        for s, k, symbol, seed in run.agents:
            try:
                export = export_agent(
                    run.program,
                    run.best_params,
                    observations,
                    s,
                    k,
                    layout.policy(symbol, seed),
                    process,
                    split=split,
                    metrics=evaluations[s][k].performance.to_dict(),
                )
            except ExportError as error:
                export = error
            exports[s].append(export)
    return exports


def foresee(program: Program, split: str) -> list[ForesightCeiling | DataError | None]:
    """Every symbol's perfect-foresight ceiling; or why there is none, or None if not asked for."""
    ceilings: list[ForesightCeiling | DataError | None] = []
    for s in range(len(program.dataset.symbols)):
        try:
            asked = program.config.evaluation.perfect_foresight
            ceilings.append(foresight_ceiling(program, s, split) if asked else None)
        except DataError as error:
            ceilings.append(error)
    return ceilings


def write_reports(
    run: TrainingRun,
    summary: dict,
    evaluations: list[list[Evaluation]],
    folder: Path,
    layout: OutputLayout,
) -> None:
    """summary.json, summary.md, report.html, a figure per symbol, and every seed's episodes."""
    by_seed: dict[int, list[str]] = {}
    for row in evaluations:
        for evaluation in row:
            lines = evaluation.episodes.to_csv(index=False, lineterminator="\n")
            head, _, body = lines.partition("\n")
            by_seed.setdefault(evaluation.seed, [head + "\n"]).append(body)
    split = evaluations[0][0].split
    for seed, parts in by_seed.items():
        write_whole(layout.evaluation(seed, split), "".join(parts))
    write_whole(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    write_whole(folder / "summary.md", render_markdown(summary))
    page = render_html(summary, evaluations, run.updates_table(), run.episodes_table())
    write_whole(folder / "report.html", page)
    kind = str(summary["data"]["kind"])
    for row in evaluations:
        title = f"{row[0].symbol} ({kind} data), {split} split"
        equity_figure(row, folder / f"equity_{row[0].symbol}.png", title)


def run_pytest(arguments: Arguments, report: Path, console: Console) -> bool:
    """Runs pytest on this report; whether it passed."""
    console.print(f"pytest {' '.join(arguments.pytest_args)}")
    environment = {**os.environ, REPORT_VARIABLE: str(report.resolve())}
    command = [sys.executable, "-m", "pytest", "-q", *arguments.pytest_args]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0


def check_what_comes_last(arguments: Arguments, program: Program) -> None:
    """Tells before training what would only fail after it.

    Raises:
      ConfigError: more evaluation episodes than the split has, or no tests to run.
      ExportError: torch is missing.
    """
    evaluation = program.config.evaluation
    random_starts(program, evaluation.split, evaluation.episodes, evaluation.seed)
    require_torch()
    if arguments.run_pytest:
        first = next((a for a in arguments.pytest_args if not a.startswith("-")), "tests")
        if not (ROOT / first.split("::")[0]).exists():
            raise ConfigError(
                f"--pytest-args {' '.join(arguments.pytest_args)}: there is no {first} in {ROOT}; "
                "the tests come with the source checkout, not with the installed package"
            )


def run_stage5(arguments: Arguments, command: list[str], console: Console) -> bool:
    """The whole study; whether every gate (and test) passed."""
    layout = OutputLayout(arguments.output_dir)
    config = arguments.settings
    if arguments.skip_training:
        stored = stored_config(layout, arguments.symbols[0], arguments.seeds[0])
        config = dataclasses.replace(stored, evaluation=config.evaluation)
    if not is_first():
        console.quiet = True
    program = build_program(config, load_data(arguments, config), num_seeds=len(arguments.seeds))
    check_what_comes_last(arguments, program)
    announce(program, arguments, console)
    command = ["python", "-m", "experiments.stage5", *command]
    with recorded(layout, "stage5", command, console, arguments.tracking) as session:
        report = study(program, arguments, command, layout, session, console)
    if report is None:
        return True
    summary, folder = report
    passed = bool(summary["passed"])
    if not passed:
        console.print(
            "the run is complete; its exit status is 1 because a gate failed or a policy differs. "
            "Gates judge behaviour, not profit"
        )
    if arguments.run_pytest:
        passed = run_pytest(arguments, folder, console) and passed
    return passed


def study(
    program: Program,
    arguments: Arguments,
    command: list[str],
    layout: OutputLayout,
    session: Session,
    console: Console,
) -> tuple[dict, Path] | None:
    """From untrained agents, or their checkpoints, to a report; returns its summary and folder.

    None in a process that has only helped to train.
    """
    run, extended_to = train_agents(program, arguments, layout, session, console)
    if arguments.distributed:
        run.state = to_host(run.state)
        if not is_first():
            run.close()
            return None
        here = jax.local_devices()
        program = run.program = build_program(program.config, program.dataset, devices=here)
    evaluation = program.config.evaluation
    split = evaluation.split
    try:
        with console.status(f"evaluating on the {split} split"):
            evaluations = evaluate_agents(
                program, run.best_params, run.seeds, split, evaluation.episodes, evaluation.seed
            )
        folder = new_folder(layout.report(timestamp()))
        with console.status("exporting policies and replaying them without JAX"):
            exports = export_agents(run, evaluations, split, layout)
        with console.status("computing what perfect foresight would have earned"):
            ceilings = foresee(program, split)
        summary = build_summary(
            run,
            evaluations,
            exports,
            ceilings,
            created=folder.name,
            command=command,
            skipped=arguments.skip_training,
            extended_to=extended_to,
        )
    finally:
        run.close()
    write_reports(run, summary, evaluations, folder, layout)
    session.reports(folder)
    show_results(summary, folder, console)
    return summary, folder


def show_results(summary: dict, folder: Path, console: Console) -> None:
    """The gate table, out-of-sample results and warnings."""
    for symbol in summary["data"]["symbols"]:
        agents = [agent for agent in summary["agents"] if agent["symbol"] == symbol]
        console.print(gate_table({f"{symbol} seed {a['seed']}": gate_results(a) for a in agents}))
    for agent in summary["agents"]:
        result, hold = agent["evaluation"], agent["evaluation"]["buy_and_hold"]
        console.print(
            f"{agent['symbol']} seed {agent['seed']}: {result['split']} {_outcome(result)}, "
            f"{result['trades']} trades; buy and hold {_outcome(hold)}; policy "
            f"{_parity(agent['policy'])}",
            soft_wrap=True,
        )
        for warning in agent["warnings"]:
            console.print(f"  warning: {warning}", markup=False, soft_wrap=True)
    for name in ("summary.md", "report.html"):
        console.print(f"report: {folder / name}", markup=False, soft_wrap=True)


def _outcome(result: dict) -> str:
    sharpe = result["performance"]["sharpe_ratio"]
    return f"{result['total_return']:+.2%}, Sharpe {'—' if sharpe is None else f'{sharpe:.2f}'}"


def _parity(policy: dict | None) -> str:
    if policy is None:
        return "not exported"
    verdict = "pass" if policy["parity"]["passed"] else "FAIL"
    return f"parity {verdict} ({policy['parity']['largest_logit_difference']:.1e})"


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    # A pipe or a log file has no width of its own: 80 columns would cut the tables.
    console = Console(width=None if sys.stdout.isatty() else 120)
    errors = Console(stderr=True)
    use_compilation_cache()
    argv = sys.argv[1:] if argv is None else argv
    try:
        arguments = parse_arguments(argv)
        if not arguments.nondeterministic:
            be_deterministic()
        use_full_precision()
        if arguments.distributed:
            join_hosts()
        agents = len(arguments.symbols) * len(arguments.seeds)
        use_cpu_cores(agents * arguments.settings.ppo.env_shards)
        return 0 if run_stage5(arguments, argv, console) else 1
    except Interrupted as message:
        errors.print(str(message), markup=False, soft_wrap=True)
        return 130
    except KeyboardInterrupt:
        errors.print(
            "interrupted; what is on disk is complete: go on with the same command and --resume, "
            "or, once training has ended, with --skip-training"
        )
        return 130
    except JaxtraderError as error:
        errors.print(f"error: {error}", markup=False, soft_wrap=True)
        return 2
    except OSError as error:  # wherever the disk fails that nobody expected it to
        remedy = "check the path, its permissions and the free space"
        errors.print(f"error: {error}; {remedy}", markup=False, soft_wrap=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
