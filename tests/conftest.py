"""Fixtures that every test file may ask for: a machine forced to one instruction set, a number of threads, a generator.

Each restores what it found, because the instruction set and the number of threads belong to the whole process.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from fastnorm._kernels import core


@pytest.fixture(autouse=True, scope="session")
def fine_grain() -> Iterator[None]:
    """Several threads already for arrays that one thread would be given otherwise."""
    before = core.set_grain(32768)
    yield
    core.set_grain(before)


@pytest.fixture(params=core.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this machine runs, in use."""
    before = core.isa()
    core.set_isa(request.param)
    yield request.param
    core.set_isa(before)


@pytest.fixture(params=[1, 2, 3, 7])
def n_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Numbers of threads, among them more than there are processors and more than there are rows."""
    before = core.get_num_threads()
    core.set_num_threads(request.param)
    yield request.param
    core.set_num_threads(before)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the test's name alone, so that a failure repeats."""
    return np.random.default_rng(list(request.node.name.encode()))
