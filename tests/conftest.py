"""What every test runs under."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def debug_key_reuse():
    """Using one random key twice is an error everywhere.

    For the whole session, because it is part of what a compiled function is cached by: switched on
    and off between tests, it would compile everything twice.
    """
    import jax

    with jax.debug_key_reuse(True):
        yield
