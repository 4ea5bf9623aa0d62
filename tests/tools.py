"""What tests need and a machine may lack: programs, rights, optional libraries.

A test without it is skipped, or fails where JAXTRADER_REQUIRE_ALL=1 says that everything is to run.
"""

import importlib
import os
from types import ModuleType
from typing import NoReturn

import pytest


def lacking(what: str) -> NoReturn:
    """Ends the test, or the module, that needs it."""
    if os.environ.get("JAXTRADER_REQUIRE_ALL") == "1":
        pytest.fail(f"{what}; JAXTRADER_REQUIRE_ALL=1 permits no skip", pytrace=False)
    pytest.skip(what, allow_module_level=True)


def library(name: str) -> ModuleType:
    """A module of an optional library."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        lacking(f"{name} is not installed")
