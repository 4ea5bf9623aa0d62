"""Settings of the machine, made once by a program's entry point and never by an import."""

from __future__ import annotations

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
    flag = "--xla_gpu_deterministic_ops=true"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
