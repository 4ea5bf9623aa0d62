"""A test that lacks a tool is skipped, and fails where everything is to run."""

import pytest
from tools import lacking, library

REQUIRED = [("", pytest.skip.Exception), ("0", pytest.skip.Exception), ("1", pytest.fail.Exception)]


@pytest.mark.parametrize(("required", "outcome"), REQUIRED)
def test_what_is_lacking_is_said(monkeypatch, required, outcome):
    monkeypatch.setenv("JAXTRADER_REQUIRE_ALL", required)
    with pytest.raises(outcome, match="there is no hammer"):
        lacking("there is no hammer")
    with pytest.raises(outcome, match="no_such_library is not installed"):
        library("no_such_library")
    assert library("pytest") is pytest
