"""What every test runs under."""

import gc
import shutil
from pathlib import Path

import pytest

MEMORY_MAPS = Path("/proc/self/maps")  # a line each; Linux allows a process 65,530

# Tracing makes millions of objects that live on; to look through them again and again for garbage
# takes a tenth of the suite's time.
gc.set_threshold(100_000, 50, 100)


@pytest.fixture(scope="session", autouse=True)
def compilation_cache():
    """The suite's workers share what they compile, with each other and with the next run."""
    from jaxtrader.runtime import use_compilation_cache

    use_compilation_cache()


@pytest.fixture(scope="session", autouse=True)
def debug_key_reuse(compilation_cache):
    """Using one random key twice is an error everywhere.

    For the whole session, because it is part of what a compiled function is cached by: switched on
    and off between tests, it would compile everything twice.
    """
    import jax

    with jax.debug_key_reuse(True):
        yield


@pytest.fixture(scope="module", autouse=True)
def forget_programs(debug_key_reuse):
    """Compiled programs are let go after a file once they are many.

    Each takes half a dozen memory maps, and when there are none left, loading the next one ends
    the worker with a segmentation fault.
    """
    import chex
    import jax

    yield
    if MEMORY_MAPS.exists() and MEMORY_MAPS.read_bytes().count(b"\n") > 10_000:
        jax.clear_caches()
        chex.clear_trace_counter()  # of functions that files share, which will be traced again
        gc.collect()


@pytest.fixture(scope="session")
def empty_mlflow_database(tmp_path_factory):
    """Made once: it takes a second or two."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def mlflow_environment(monkeypatch):
    """As in a process that only uploads, whatever the person who runs the tests has set."""
    from jaxtrader.tracking.store import PROCESS_ENVIRONMENT

    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    for name, value in PROCESS_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    # mlflow checks its own sessions harder when it thinks that it is being tested.
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)


@pytest.fixture
def root(tmp_path, empty_mlflow_database):
    """An output folder with an MLflow database that has no run yet."""
    shutil.copy(empty_mlflow_database, tmp_path / "mlflow.db")
    return tmp_path
