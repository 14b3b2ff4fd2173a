"""A search for data that breaks the accuracy bounds, by hypothesis: nothing is chosen by hand but the ranges.

Promise 3: mean within 1 ULP at max(|mean|, std), variance within 2, y within 4 at |gamma * xhat| + |beta|, dx within 8 at
the size of its terms, at magnitudes from 1e-38 to 1e38, mean/std up to 1e7, ramps, outliers, near-constant rows, any
length, and eps from 1e-12 to 1. A failure prints the smallest case that still fails; FASTNORM_SEARCH multiplies the
number of cases that are tried.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import exact
import numpy as np
import pytest
from support import compute_type, dtype_of, strict_scales, within

import fastnorm as fn

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies
CASES = int(30 * float(os.environ.get("FASTNORM_SEARCH", "1")))
searched = hypothesis.settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)


@dataclass(frozen=True)
class Rows:
    """What to draw: a shape of values, then magnitude and offset."""

    kind: str
    rows: int
    length: int
    magnitude: float  # decimal exponent of the deviation
    offset: float  # mean / std
    eps: float
    affine: bool
    seed: int

    def build(self, dtype: Any) -> np.ndarray:
        rng = np.random.default_rng(self.seed)
        size = (self.rows, self.length)
        z = rng.standard_normal(size)
        if self.kind == "ramp":
            z = np.broadcast_to(np.linspace(-1, 1, self.length), size).copy()
        elif self.kind == "outlier":
            z[:, rng.integers(self.length)] = 10.0 ** rng.uniform(2, 8)
        elif self.kind == "near-constant":
            z = (rng.random(size) < 1 / max(self.length, 2)).astype(float)
        elif self.kind == "two-valued":
            z = np.sign(z)
        elif self.kind == "heavy-tailed":
            z = z / np.maximum(np.abs(rng.standard_normal(size)), 1e-6)
        elif self.kind == "scales":
            z = z * 10.0 ** rng.uniform(-6, 0, size)
        elif self.kind == "neighbours":
            spacing = 2.0 ** -exact.FORMATS[np.dtype(dtype).name][0]
            return ((1 + rng.integers(0, 3, size) * spacing) * 2.0 ** round(3 * self.magnitude)).astype(dtype)
        limit = exact.LARGEST[np.dtype(dtype).name] / 4
        with np.errstate(over="ignore", under="ignore"):
            x = (z + self.offset) * 10.0**self.magnitude
            return np.clip(x, -limit, limit).astype(dtype)

    def parameters(self, n: int, dtype: Any) -> tuple[Any, Any]:
        rng = np.random.default_rng(self.seed + 1)
        w, b = rng.standard_normal((2, n)).astype(compute_type(np.dtype(dtype)))
        return (w, b) if self.affine else (None, None)


def rows_of(lengths: Any, magnitudes: tuple[float, float]) -> Any:
    offsets = st.one_of(st.just(0.0), st.floats(-7, 7).map(lambda e: float(np.copysign(10.0 ** abs(e), e))))
    return st.builds(
        Rows,
        kind=st.sampled_from(
            ["normal", "ramp", "outlier", "near-constant", "two-valued", "heavy-tailed", "scales", "neighbours"]
        ),
        rows=st.sampled_from([1, 2, 3, 5, 9]),
        length=lengths,
        magnitude=st.floats(*magnitudes),
        offset=offsets,
        eps=st.floats(-12, 0).map(lambda e: 10.0**e),
        affine=st.booleans(),
        seed=st.integers(0, 2**20),
    )


SHORT = st.one_of(st.integers(2, 20), st.integers(2, 70), st.integers(71, 5000))
LONG = st.one_of(st.integers(5000, 70000), st.integers(70000, 300000))
RANGES = {"float32": (-38, 38), "float64": (-100, 100), "float16": (-5, 3), "bfloat16": (-38, 38)}


def arranged(norm: str, rows: np.ndarray) -> np.ndarray:
    """An array in which each row shares its statistics under `norm`."""
    r, m = rows.shape
    if norm == "columns":
        return np.ascontiguousarray(rows.T)
    if norm == "batch":
        return rows.reshape(1, r, m)
    if norm == "group":
        return rows.reshape(1, 2 * r, m // 2) if m % 2 == 0 else rows.reshape(1, r, m)
    if norm == "instance":
        return rows.reshape(1, r, m)
    return rows


def check(norm: str, case: Rows, dtype: str) -> None:
    rows = case.build(dtype_of(dtype))
    r, m = rows.shape
    x = arranged(norm, rows)
    name = {"columns": "batch"}.get(norm, norm)
    w, b = case.parameters(m if norm in ("layer", "rms") else x.shape[1], x.dtype)
    dy = np.random.default_rng(case.seed + 2).standard_normal(x.shape).astype(x.dtype)
    forward, backward = getattr(fn, f"{name}_norm_forward"), getattr(fn, f"{name}_norm_backward")
    y, ctx = {
        "batch": lambda: forward(x, None, None, w, b, True, 0.1, case.eps),
        "instance": lambda: forward(x, None, None, w, b, True, 0.1, case.eps),
        "group": lambda: forward(x, r, w, b, case.eps),
        "layer": lambda: forward(x, m, w, b, case.eps),
        "rms": lambda: forward(x, m, w, case.eps),
    }[name]()
    b = None if norm == "rms" else b
    view = exact.view(name, x.shape, groups=r)
    known = exact.standardise(view, x, case.eps, centre=norm != "rms")
    f = exact.forward(view, x, w, b, case.eps, known=known)
    within(y, f.y, f.scale, 4, "y")
    grads = backward(dy, ctx)
    g = exact.backward(view, x, dy, w, case.eps, known=known)
    dx_scale, dweight_scale, dbias_scale = strict_scales(view, known, dy, w, x.shape)
    within(grads.dx, g.dx, dx_scale, 8, "dx")
    for got, value, scale in ((grads.dweight, g.dweight, dweight_scale), (grads.dbias, g.dbias, dbias_scale)):
        if got is not None:
            within(got.ravel(), value, np.maximum(scale, np.abs(value)), 8, "sums")


@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("norm", ["batch", "columns", "instance", "group", "layer", "rms"])
def test_norms(norm: str, dtype: str) -> None:
    @searched
    @hypothesis.given(rows_of(SHORT, RANGES[dtype]))
    def search(case: Rows) -> None:
        check(norm, case, dtype)

    search()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("norm", ["batch", "columns", "layer", "rms"])
def test_norms_of_long_rows(norm: str, dtype: str) -> None:
    lengths = LONG if dtype == "float32" else st.integers(5000, 80000)

    @hypothesis.settings(searched, max_examples=max(CASES // 6, 1))
    @hypothesis.given(rows_of(lengths, RANGES[dtype]).filter(lambda c: c.rows < 4))
    def search(case: Rows) -> None:
        check(norm, case, dtype)

    search()


@pytest.mark.parametrize("dtype", RANGES)
def test_moments(dtype: str) -> None:
    @hypothesis.settings(searched, max_examples=2 * CASES)
    @hypothesis.given(rows_of(st.one_of(st.integers(1, 9), SHORT), RANGES[dtype]), st.booleans())
    def search(case: Rows, columns: bool) -> None:
        rows = case.build(dtype_of(dtype))
        f = exact.forward(exact.view("layer", rows.shape), rows, None, None, case.eps)
        mean, var = fn.moments(np.ascontiguousarray(rows.T) if columns else rows, 0 if columns else 1)
        within(mean, f.mean, np.maximum(np.abs(f.mean), np.sqrt(f.var)), 1, "mean")
        within(var, f.var, f.var, 2, "variance")

    search()


@pytest.mark.parametrize("dtype", RANGES)
def test_softmax(dtype: str) -> None:
    @searched
    @hypothesis.given(rows_of(SHORT, (-5, 2)))
    def search(case: Rows) -> None:
        x = case.build(dtype_of(dtype))
        z = x.astype(exact.LONG)
        e = np.exp(z - z.max(1, keepdims=True))
        p = e / e.sum(1, keepdims=True)
        y = fn.softmax(x)
        within(y, p, p, 4, "softmax")

    search()
