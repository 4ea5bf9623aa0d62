"""What every test runs under."""

import pytest


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
