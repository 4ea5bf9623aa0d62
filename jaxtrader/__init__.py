"""Train, test and export teams of trading agents, with market and learning in one JAX program.

The names below are the API; each is imported when it is first used, so that `import jaxtrader`
costs next to nothing and `jaxtrader.export` works where JAX is not installed.
"""

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtrader.api import evaluate, export_policy, load_market, synthetic_market, train
    from jaxtrader.config import TrainingConfig, load_config
    from jaxtrader.errors import JaxtraderError
    from jaxtrader.export import load_policy

_HOMES = {
    "TrainingConfig": "jaxtrader.config",
    "evaluate": "jaxtrader.api",
    "export_policy": "jaxtrader.api",
    "JaxtraderError": "jaxtrader.errors",
    "load_config": "jaxtrader.config",
    "load_market": "jaxtrader.api",
    "load_policy": "jaxtrader.export",
    "synthetic_market": "jaxtrader.api",
    "train": "jaxtrader.api",
}

__all__ = [
    "JaxtraderError",
    "TrainingConfig",
    "evaluate",
    "export_policy",
    "load_config",
    "load_market",
    "load_policy",
    "synthetic_market",
    "train",
]


def _check_siblings() -> None:
    """`envs` and `agents` are common names: another package of that name must not stand in."""
    home = Path(__file__).resolve().parents[1]
    for name in ("envs", "agents"):
        spec = importlib.util.find_spec(name)
        found = None if spec is None or spec.origin is None else Path(spec.origin).resolve()
        if found != home / name / "__init__.py":
            raise ImportError(
                f"jaxtrader needs its own package {name!r} in {home}, but Python finds "
                f"{found or 'none'}: rename or move that one, or start Python elsewhere"
            )


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxtrader' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


_check_siblings()
