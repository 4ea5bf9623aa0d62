"""The documentation is true: every block of code on every page runs, and no table has gone stale.

A page's Python blocks share one namespace and one folder, in the order of the page. Its YAML
blocks are settings, left in that folder as files. Its console blocks are run by bash there: lines
after `$` are commands, the others what they print. What would take minutes runs on the settings of
configs/quick.yaml, what would install something is checked against pyproject.toml, and `make` says
what it would do.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
import tomllib
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt
from sybil import Example, Sybil
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser

import envs
import jaxtrader as jt
from envs.actions import FORCED_REASONS, Action, Reason
from envs.execution import COST_PRESETS
from envs.reward import WEIGHT_PRESETS, RewardComponents
from jaxtrader.config import load_config
from jaxtrader.data import FEATURE_NAMES, synthetic_bars
from jaxtrader.data.features import FEATURES
from jaxtrader.gates import STAGE5_GATES

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
STUDY = "-m experiments.stage5"
LANGUAGES = {"python", "console", "yaml", "text"}  # text is not run
TRAINS = re.compile(r"jt\.train\(|experiments\.stage5|env\.reset\(")

if not DOCS.is_dir():
    pytest.skip("docs/ is not in this tree: there is nothing to read", allow_module_level=True)


# ------------------------------------------------------------------------------- blocks of code


def run_console(example: Example) -> None:
    """Every command succeeds unless `echo $?` comes next, and what is shown is what they print.

    A crash is never what a page means to show, and Python's own status is that of a failed gate.
    """
    commands, shown = [], []
    for line in example.parsed.splitlines():
        if line.startswith("$ "):
            commands.append(line.removeprefix("$ "))
        elif line.startswith("> "):
            commands[-1] += "\n" + line.removeprefix("> ")
        else:
            shown.append(line)
    where = f"{example.path}, line {example.line}"
    assert commands, f"{where}: a console block without `$ command`"
    script = ["set -e -o pipefail"]
    for command, following in zip(commands, [*commands[1:], ""], strict=True):
        if command.startswith("make "):
            dry_run(command)
        elif command.startswith("pip install "):
            check_requirements(command)
        elif following == "echo $?":
            script += ["set +e", quick(command)]
        elif STUDY in command and not command.endswith("&"):
            script += ["set -e", f"{{ {quick(command)}\n}} || [ $? -eq 1 ]"]  # 1: a gate failed
        else:
            script += [command] if command == "echo $?" else ["set -e", quick(command)]
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{where}: {done.stdout}"
    assert "Traceback (most recent call last)" not in done.stdout, f"{where}: {done.stdout}"
    expected = "\n".join(shown).strip()
    assert expected or "echo $?" not in commands, f"{where}: a status that is not shown"
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if expected:
        agrees = doctest.OutputChecker().check_output(expected, done.stdout, flags)
        assert agrees, f"{where}: {done.stdout}"


def quick(command: str) -> str:
    """A training that says nothing else runs on settings that end within seconds, untracked."""
    for option in ("--config configs/quick.yaml", "--tracking off"):
        if option.split()[0] not in command:
            command = command.replace(STUDY, f"{STUDY} {option}")
    return command


def dry_run(command: str) -> None:
    target = [*shlex.split(command, comments=True), "--dry-run", "--no-print-directory"]
    done = subprocess.run(target, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def check_requirements(command: str) -> None:
    """What the page installs is what pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for requirement in shlex.split(command, comments=True)[2:]:
        if requirement == "-e":
            continue
        if match := re.fullmatch(r"(?:\.|jaxtrader)\[(.+)\]", requirement):
            assert set(match[1].split(",")) <= set(extras), requirement
        else:
            assert requirement in {pin for pins in extras.values() for pin in pins}, requirement


def keep_settings(example: Example) -> None:
    """A YAML block is settings; its first line is a comment with the file's name."""
    name, _ = example.parsed.removeprefix("# ").split("\n", 1)
    assert re.fullmatch(r"\w+\.yaml", name), f"{example.path}, line {example.line}: no file name"
    Path(name).write_text(example.parsed, encoding="utf-8")
    load_config(name)


SYBIL = Sybil(
    parsers=[
        PythonCodeBlockParser(doctest_optionflags=doctest.ELLIPSIS),
        CodeBlockParser(language="console", evaluator=run_console),
        CodeBlockParser(language="yaml", evaluator=keep_settings),
    ]
)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder in which the pages' paths lead somewhere: `DIR` is a person's own data folder."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    for symbol in ("SPY", "QQQ"):
        bars = synthetic_bars(symbol, sessions=300)
        columns = {name: getattr(bars, name) for name in ("open", "high", "low", "close", "volume")}
        stamps = pa.array(bars.timestamps, pa.timestamp("us", "UTC"))
        path = tmp_path / "DIR" / "historical" / symbol / "1Hour" / "data.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table({"timestamp": stamps, **columns}), path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    registered = dict(FEATURES)
    yield tmp_path
    FEATURES.clear()
    FEATURES.update(registered)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def pages() -> list:
    slow = [bool(TRAINS.search(page.read_text(encoding="utf-8"))) for page in PAGES]
    return [
        pytest.param(page, id=name_of(page), marks=[pytest.mark.slow] if trains else [])
        for page, trains in zip(PAGES, slow, strict=True)
    ]


@pytest.mark.parametrize("page", pages())
def test_every_block_of_the_page_runs(page, checkout):
    document = SYBIL.parse(page)
    for example in document.examples():
        example.evaluate()


@pytest.mark.parametrize(
    "block",
    [
        "$ false",
        "$ false\n$ true",
        "$ false | true",
        "$ python -c 'raise ValueError' # -m experiments.stage5",
        "$ sh -c 'exit 2' # -m experiments.stage5",
        "$ python -c 'raise ValueError'\n$ echo $?",
        "$ python -c 'raise ValueError' & wait",
        "$ echo 1\n2",
        "$ false\n$ echo $?",
        "$ make nothing-of-the-kind",
        "$ pip install jaxtrader[nothing]",
        "nothing",
    ],
)
def test_a_console_block_that_is_untrue_fails(block, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"```console\n{block}\n```\n", encoding="utf-8")
    [example] = SYBIL.parse(page).examples()
    with pytest.raises(AssertionError):
        example.evaluate()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_of_the_page_is_one_that_is_run(page):
    """A block in no language, or in one misspelt, would be shown and never run."""
    text = page.read_text(encoding="utf-8")
    fences = [token for token in MarkdownIt().parse(text) if token.type == "fence"]
    for fence in fences:
        directive = fence.info.startswith("{")
        assert directive or fence.info in LANGUAGES, f"{page}, line {fence.map[0] + 1}"
    run = [fence for fence in fences if fence.info in LANGUAGES - {"text"}]
    assert len(run) == len(list(SYBIL.parse(page).examples()))


# ------------------------------------------------------------------------------------- tables


def table(page: str, heading: str) -> list[list[str]]:
    """Cells of the rows below the table head that begins with `heading`, without code marks."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return rows


def test_the_tables_of_actions_and_reasons_are_the_enumerations():
    assert [(row[0], row[1]) for row in table("concepts/actions.md", "id")] == [
        (str(action.value), action.name) for action in Action
    ]
    reasons = table("concepts/actions.md", "code")
    assert [(row[0], row[1]) for row in reasons] == [(str(r.value), r.name) for r in Reason]
    forced = {row[1] for row in reasons if row[2] == "forced exit"}
    assert forced == {reason.name for reason in FORCED_REASONS}


def test_the_tables_of_the_reward_are_its_components_and_presets():
    rows = table("concepts/reward.md", "component")
    assert tuple(row[0] for row in rows) == RewardComponents.names()
    presets = {"professional": 2, "log_wealth": 3, "differential_sharpe": 4}
    assert set(presets) == set(WEIGHT_PRESETS)
    for preset, column in presets.items():
        weights = {row[0]: float(row[column]) for row in rows if row[column]}
        assert weights == WEIGHT_PRESETS[preset]


def test_the_table_of_costs_is_the_presets():
    rows = table("concepts/time_and_fills.md", "costs")
    assert {row[0]: row[1:] for row in rows} == {
        name: [f"{1e4 * rate:g}" for rate in rates] for name, rates in COST_PRESETS.items()
    }


def test_the_table_of_gates_is_the_gates():
    rows = table("concepts/telemetry.md", "gate")
    assert [row[:3] for row in rows] == [[g.metric, g.bound, g.description] for g in STAGE5_GATES]


def test_the_features_are_all_named():
    [row] = [row for row in table("concepts/encode_once.md", "half") if row[0] == "market"]
    assert all(re.search(rf"\b{name}\b", row[1]) for name in FEATURE_NAMES)


# ----------------------------------------------------------------------------------- reference


def test_every_module_is_in_the_reference():
    pages = "\n".join(p.read_text(encoding="utf-8") for p in (DOCS / "reference").glob("*.md"))
    documented = set(re.findall(r"automodule:: (\S+)", pages))
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in ("jaxtrader", "envs", "agents")
        for path in (ROOT / package).rglob("*.py")
        if path.stem != "__main__"
    }
    modules -= {"jaxtrader", "envs", "agents"}  # their names are at home in the modules below them
    assert sorted(modules - documented) == []


@pytest.mark.slow
def test_the_pages_build_without_a_warning_and_name_what_is_public(tmp_path):
    command = [
        "-m",
        "sphinx",
        "-n",
        "-W",
        "--keep-going",
        "-q",
        "-d",
        "doctrees",
        str(DOCS),
        "html",
    ]
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    inventory = (tmp_path / "html" / "objects.inv").read_bytes().split(b"\n", 4)[4]
    documented = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    names = {name.split(".")[-1] for name in documented}
    public = {*jt.__all__, *(name for name in vars(envs) if name[0].isupper())}
    assert sorted(public - names) == []
    assert {f"envs.reward.{name}" for name in ("RewardStep", "RewardFunction")} <= documented
