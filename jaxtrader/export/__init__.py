"""Policies as files that need only torch, and the proof that they equal the JAX originals.

Importing this package imports neither torch nor jax. Its names import torch on first use, and
`load_policy` works where jax is not installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jaxtrader.errors import ExportError

if TYPE_CHECKING:
    from jaxtrader.export.parity import (
        ParityProcess,
        ParityReport,
        check_parity,
        write_parity_data,
    )
    from jaxtrader.export.torchscript import (
        FORMAT_VERSION,
        LoadedPolicy,
        PolicyManifest,
        export_policy,
        load_policy,
    )

__all__ = [
    "FORMAT_VERSION",
    "LoadedPolicy",
    "ParityProcess",
    "ParityReport",
    "PolicyManifest",
    "check_parity",
    "export_policy",
    "load_policy",
    "write_parity_data",
]

_PARITY = frozenset({"ParityProcess", "ParityReport", "check_parity", "write_parity_data"})


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{'parity' if name in _PARITY else 'torchscript'}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        message = f"{__name__}.{name} needs torch: pip install -e '.[export]' in the checkout"
        raise ExportError(message) from error
    return getattr(module, name)
