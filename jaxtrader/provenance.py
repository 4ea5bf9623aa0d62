"""What produced a result: versions, commit and machine."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import jax

_PACKAGES = ("jaxtrader", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pandas")


@functools.cache
def git_commit() -> str | None:
    """Commit of the checkout the library runs from, `+dirty` when it differs; None outside one."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():  # an installed copy inside somebody else's repository
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
        # What a run writes may lie about; code that git does not know may have been run.
        new_code = _git(folder, "ls-files", "--others", "--exclude-standard", "--", "*.py")
        return commit + ("+dirty" if changed or new_code else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=10, check=True
    ).stdout.strip()


def versions() -> dict[str, str]:
    """Installed versions of Python and of the packages that decide what is computed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def packages() -> dict[str, str]:
    """Versions of everything installed, as `pip freeze` lists it."""
    described = [distribution.metadata for distribution in importlib.metadata.distributions()]
    return dict(sorted((d["Name"], d["Version"]) for d in described if d["Name"]))


def machine() -> dict[str, str]:
    """What the program ran on."""
    device = jax.devices()[0]
    return {
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "devices": str(jax.device_count()),
    }
