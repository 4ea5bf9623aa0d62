"""Settings of the machine: which they are, and that none is made too late."""

import os

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtrader.runtime import cpu_devices, use_cpu_cores


@given(parts=st.integers(1, 500), cores=st.integers(1, 200))
def test_devices_keep_all_cores_busy_and_are_as_few_as_that_takes(parts, cores):
    devices = cpu_devices(parts, cores)
    assert parts % devices == 0  # all have the same work
    assert devices >= min(parts, cores)  # and no core is idle that could be busy
    assert all(parts % fewer for fewer in range(min(parts, cores), devices))


@pytest.mark.parametrize(
    ("parts", "cores", "devices"),
    [(1, 8, 1), (3, 2, 3), (4, 2, 2), (16, 2, 2), (6, 4, 6), (12, 8, 12), (12, 5, 6), (7, 3, 7)],
)
def test_devices_by_hand(parts, cores, devices):
    assert cpu_devices(parts, cores) == devices


def test_once_jax_is_in_use_nothing_is_changed(monkeypatch):
    jax.devices()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    before = jax.config.jax_num_cpu_devices
    assert before != 3
    use_cpu_cores(3)
    assert jax.config.jax_num_cpu_devices == before
