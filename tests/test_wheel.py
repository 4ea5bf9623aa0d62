"""The built wheel works outside the checkout."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tools import library

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("agents", "benchmarks", "envs", "experiments", "jaxtrader")

# Prints where a stranger's Python finds the packages and the default configuration.
PROBE = """
import json, agents, envs, jaxtrader
from jaxtrader.config import default_config_path
files = {module.__name__: module.__file__ for module in (agents, envs, jaxtrader)}
print(json.dumps(files | {"config": str(default_config_path())}))
"""

pytestmark = pytest.mark.slow


def pip(*arguments: str | Path) -> None:
    """Run this interpreter's pip, and fail the test with its output if it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel with the installed hatchling, so without a network."""
    library("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    (path,) = folder.glob("jaxtrader-*.whl")
    return path


def test_wheel_holds_every_module_config_and_template_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}

    modules = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in {".py", ".json", ".j2", ".css", ".js"}
    }
    configs = {f"jaxtrader/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    assert configs, "the checkout holds no configs/*.yaml"
    missing = (modules | configs | {"jaxtrader/py.typed"}) - shipped
    assert not missing
    assert {name.split("/")[0] for name in shipped} == set(PACKAGES)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content where nothing else is."""
    target = tmp_path_factory.mktemp("target")
    pip("install", "--no-deps", "--no-index", "--target", target, wheel)
    return target


def run_outside(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Python in `folder` with the installed wheel first on its path.

    -B and the bare environment: only the wheel may provide the packages. Site packages stay, for
    the dependencies; an editable install found there comes after PYTHONPATH.
    """
    return subprocess.run(
        [sys.executable, "-B", *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu", "HOME": str(Path.home())},
        capture_output=True,
        text=True,
        check=False,
    )


def test_wheel_imports_from_itself_and_finds_its_config(installed: Path, tmp_path: Path) -> None:
    done = run_outside(installed, tmp_path, "-c", PROBE)
    assert done.returncode == 0, done.stderr

    found = {name: Path(path).resolve() for name, path in json.loads(done.stdout).items()}
    for name, path in found.items():
        assert path.is_relative_to(installed.resolve()), f"{name} comes from {path}"
    assert found["config"].is_file()


def test_wheel_runs_stage5_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    small = ("--total-timesteps", "512", "--n-envs", "1", "--evaluation-episodes", "2")
    done = run_outside(
        installed, tmp_path, "-m", "experiments.stage5", "--seeds", "1", *small,
        "--network.channels", "8", "--data.synthetic-sessions", "400",
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr  # a failing gate is a result
    (report,) = tmp_path.glob("reports/stage5_validation/*/summary.json")
    assert json.loads(report.read_text())["agents"][0]["policy"]["parity"]["passed"]
    assert report.with_name("report.html").read_text().startswith("<!DOCTYPE html>")
