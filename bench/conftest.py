"""Options of the benchmarks, and the arrays that the contenders of one row share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastnorm.cli import measure, peers


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastnorm")
    group.addoption("--panel", choices=("quick", "full"), default="quick", help="which shapes (default: quick)")
    group.addoption("--ops", default=",".join(measure.OPS), help="which functions, separated by commas (default: all)")
    group.addoption("--dtypes", default="float32", help="storage types, separated by commas (default: float32)")
    group.addoption("--layouts", default="nchw", help="nchw, nhwc or both, separated by a comma (default: nchw)")
    group.addoption("--threads", type=int, default=1, help="threads of every contender (default: 1)")


def pytest_configure(config: pytest.Config) -> None:
    peers.limit_threads(config.getoption("--threads"))  # before any library starts its threads


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every row of the panel with every contender."""
    option = metafunc.config.getoption
    rows = measure.panel(
        option("--ops").split(","),
        quick=option("--panel") == "quick",
        dtypes=option("--dtypes").split(","),
        layouts=option("--layouts").split(","),
    )
    metafunc.parametrize("problem", rows, ids=[row.label for row in rows], indirect=True, scope="module")
    metafunc.parametrize("name", ["kernel", "reference", "copy", *peers.installed()])


@pytest.fixture(scope="module")
def problem(request: pytest.FixtureRequest) -> Iterator[measure.Problem]:
    """The arrays of one row: made once, dropped before the next row's."""
    threads = request.config.getoption("--threads")
    with measure.using_threads(threads):
        yield measure.Problem(request.param)
