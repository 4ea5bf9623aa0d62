"""Settings of the machine, made once by a program's entry point and never by an import."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import jax


def use_compilation_cache() -> Path:
    """Keeps compiled programs in a per-user folder, so that a second start compiles nothing.

    `JAX_COMPILATION_CACHE_DIR` names another folder.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or base / "jaxtrader" / "xla")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return folder


def use_full_precision() -> None:
    """Full float32 matrix products: an accelerator's default (TF32) would break export parity."""
    jax.config.update("jax_default_matmul_precision", "highest")


def be_deterministic() -> None:
    """Deterministic reductions on a GPU: the same seed gives the same bits there too.

    Call before JAX touches a device.
    """
    _add_flag("--xla_gpu_deterministic_ops=true")


def use_cpu_cores(parts: int) -> None:
    """Where there is no accelerator, makes a CPU as many devices as its cores can be busy with.

    Agents on devices of their own keep all cores at work, where the operations of one are too small
    to be shared out among them.

    Call before JAX touches a device: afterwards it has no effect.

    Args:
      parts: into which the work can be split: agents, times `ppo.env_shards`.
    """
    devices = cpu_devices(parts, available_cores())
    if devices > 1:  # else whatever the user has set stands
        with contextlib.suppress(RuntimeError):  # JAX has been used before
            jax.config.update("jax_num_cpu_devices", devices)


def available_cores() -> int:
    """Cores of the CPU that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1


def cpu_devices(parts: int, cores: int) -> int:
    """The fewest devices that share `parts` evenly and keep `cores` busy, or one for each part."""
    return next(d for d in range(min(parts, cores), parts + 1) if parts % d == 0)


def _add_flag(flag: str) -> None:
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
