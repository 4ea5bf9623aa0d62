"""`envs/` and `agents/` compute and do nothing else: read from their syntax trees.

import-linter forbids the modules that could do more; this test also sees what needs no import, and
what JAX itself offers to reach the host.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {"envs": {"envs"}, "agents": {"agents", "envs"}}
SOURCES = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]

# Everything else is input, output, a clock or a generator of its own, until someone says why not.
PURE_MODULES = {
    "__future__",
    "abc",
    "chex",
    "collections",
    "dataclasses",
    "enum",
    "flax",
    "functools",
    "itertools",
    "jax",
    "math",
    "numpy",
    "optax",
    "typing",
}
# An accelerator image may lack it: inside a function it costs nobody anything.
LAZY_MODULES = {"gymnax"}
IMPURE_BUILTINS = {
    "__import__",
    "breakpoint",
    "compile",
    "eval",
    "exec",
    "globals",
    "input",
    "open",
    "print",
}
HOST_CALLBACKS = {
    "call",  # jax.experimental.host_callback.call
    "callback",
    "debug_callback",
    "experimental",
    "host_callback",
    "id_tap",
    "io_callback",
    "pure_callback",
}
NUMPY_FILES = {
    "fromfile",
    "genfromtxt",
    "load",
    "loadtxt",
    "memmap",
    "save",
    "savetxt",
    "savez",
    "savez_compressed",
    "tofile",
}


def dotted(node: ast.AST) -> str:
    """`a.b.c` as text, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def imported(node: ast.AST) -> list[str]:
    """Modules that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = "." * node.level + (node.module or "")
        return [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return []


def offences(source: str, siblings: set[str]) -> Iterator[str]:
    """What in `source` is not a pure computation; `siblings` are the layers it may import."""
    tree = ast.parse(source)
    at_module_level = set(tree.body)
    for node in ast.walk(tree):
        where = f"line {getattr(node, 'lineno', 0)}"
        for module in imported(node):
            root = module.split(".")[0]
            lazy = root in LAZY_MODULES and node not in at_module_level
            if root not in PURE_MODULES | siblings and not lazy:
                yield f"{where}: imports {module}"
            if module.startswith(("numpy.random", "jax.experimental")):
                yield f"{where}: imports {module}"
        # Read, that is: a field of a market may well be called `open`.
        reads = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
        if reads and node.id in IMPURE_BUILTINS:
            yield f"{where}: uses {node.id}"
        if isinstance(node, ast.Global | ast.Nonlocal):
            yield f"{where}: declares {', '.join(node.names)} global"
        if isinstance(node, ast.Attribute):
            name = dotted(node)
            if name.startswith(("np.random", "numpy.random")):
                yield f"{where}: uses {name}"
            if name.startswith("jax.") and node.attr in HOST_CALLBACKS:
                yield f"{where}: uses {name}"
            if name.startswith("jax.debug."):
                yield f"{where}: uses {name}"
            if node.attr in NUMPY_FILES and name.startswith(("np.", "numpy.", "jnp.")):
                yield f"{where}: uses {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_is_pure(path: Path) -> None:
    siblings = LAYERS[path.relative_to(ROOT).parts[0]]
    assert list(offences(path.read_text(), siblings)) == []


def test_there_is_something_to_read() -> None:
    assert {path.name for path in SOURCES} >= {"trading.py", "execution.py", "ppo.py", "rollout.py"}


@pytest.mark.parametrize(
    "source",
    [
        "open('x')",
        "def f():\n    print(1)",
        "import random",
        "from random import choice",
        "import numpy as np\nnp.random.default_rng(0)",
        "from numpy import random",
        "import numpy.random",
        "import time",
        "def f():\n    import torch",
        "import gymnax",
        "from jax.experimental import io_callback",
        "import jax\njax.debug.print('{}', 1)",
        "import jax\njax.debug.callback(f)",
        "import jax\njax.pure_callback(f, s)",
        "import jax\njax.experimental.io_callback(f, s)",
        "import numpy as np\nnp.load('x')",
        "from agents import ppo",
        "from jaxtrader import api",
        "def f():\n    global x\n    x = 1",
    ],
)
def test_offences_are_seen(source: str) -> None:
    assert list(offences(source, {"envs"}))


@pytest.mark.parametrize(
    "source",
    [
        "import jax\nkey = jax.random.key(0)",
        "def f():\n    from gymnax.environments import spaces",
        "from envs.market import Market",
        "import jax.numpy as jnp\njnp.zeros(3)",
        "import numpy as np\nnp.asarray([1])",
        "class Market:\n    open: float",
    ],
)
def test_pure_code_passes(source: str) -> None:
    assert not list(offences(source, {"envs"}))
