"""The built wheel works outside the checkout."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    (path,) = folder.glob("jaxtrader-*.whl")
    return path


def test_wheel_holds_every_module_and_config_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}

    modules = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    configs = {f"jaxtrader/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    assert configs, "the checkout holds no configs/*.yaml"
    missing = (modules | configs | {"jaxtrader/py.typed"}) - shipped
    assert not missing
    assert {name.split("/")[0] for name in shipped} == set(PACKAGES)


def test_wheel_imports_from_itself_and_finds_its_config(wheel: Path, tmp_path: Path) -> None:
    target, outside = tmp_path / "target", tmp_path / "outside"
    outside.mkdir()
    pip("install", "--no-deps", "--no-index", "--target", target, wheel)

    # -B and the bare environment: only `target` may provide the packages. Site packages stay, for
    # the dependencies; an editable install found there comes after PYTHONPATH.
    done = subprocess.run(
        [sys.executable, "-B", "-c", PROBE],
        cwd=outside,
        env={"PYTHONPATH": str(target), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    found = {name: Path(path).resolve() for name, path in json.loads(done.stdout).items()}
    for name, path in found.items():
        assert path.is_relative_to(target.resolve()), f"{name} comes from {path}"
    assert found["config"].is_file()
