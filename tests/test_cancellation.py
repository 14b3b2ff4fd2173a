"""Sums that cancel: means that outweigh deviations or stand beside others that do not, and gradients of which little is left.

Squares and gradients' products are added about zero where the mean is near it, about the mean where it is not; a channel's choice is
its own.
"""

from __future__ import annotations

import exact
import numpy as np
import pytest
from support import Call, check_exactly, compute_type, draw, dtype_of, every_dtype, same_bits, strict_scales

import fastnorm as fn


@every_dtype
@pytest.mark.parametrize(
    ("shape", "axis"), [((16, 40, 6, 6), 1), ((70, 40), 1), ((5, 9, 13, 40), -1), ((2, 40, 900), 1)]
)
def test_near_and_far_means(shape: tuple[int, ...], axis: int, dtype: str, rng: np.random.Generator) -> None:
    """Channels side by side whose means are 2 to 2^20 deviations; each has the bits that it has alone."""
    half = dtype == "float16"
    ratio = rng.permutation(np.repeat(2.0 ** np.arange(1, 21), 2) * np.tile([1, -1], 20)) / (64 if half else 1)
    apart = [-1 if i == axis % len(shape) else 1 for i in range(len(shape))]
    x = (rng.standard_normal(shape) / (64 if half else 1) + ratio.reshape(apart)).astype(dtype_of(dtype))
    gamma, beta = (draw(rng, (40,), compute_type(x)) for _ in range(2))
    call = Call("batch_norm", {"x": x, "weight": gamma, "bias": beta, "training": True, "axis": axis})
    dy = draw(rng, shape, dtype_of(dtype), 0.1)
    check_exactly(call, exact.view("batch", shape, axis=axis), dy, 1e-5, f"{shape}, axis {axis}, {dtype}")
    every = call.results(dy)
    for c in (0, 7, 39):
        only = np.full(shape, x.take([c], axis))
        alone = call.replaced(x=only, weight=np.full(40, gamma[c]), bias=np.full(40, beta[c])).results(
            np.full(shape, dy.take([c], axis))
        )
        for field in ("y", "dx"):
            same_bits(every[field].take(c, axis), alone[field].take(c, axis), f"channel {c} of {shape}: {field}")


@pytest.mark.parametrize("ratio", [0.5, 1.9, 2.1, 30, 1000])
@pytest.mark.parametrize("columns", [False, True])
def test_gradient_sums_that_cancel(ratio: float, columns: bool) -> None:
    """dy at right angles to 1 and xhat, as behind another norm, and 0 at half of the elements, as behind a ReLU: there dx is only
    what is left of both sums, whose roundings may not show."""
    n, worst = 4096, 0.0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        x, on = (rng.standard_normal((1, 1, n)) + ratio).astype(np.float32), rng.random(n) < 0.5
        basis = np.stack([np.ones(n), x[0, 0] - x.astype(float).mean()], 1)[on]
        upstream = rng.standard_normal(len(basis))
        for _ in range(3):
            upstream = upstream - basis @ np.linalg.lstsq(basis, upstream, rcond=None)[0]
        dy = np.zeros_like(x)
        dy[0, 0, on] = upstream
        view = exact.view("batch", x.shape)
        known = exact.standardise(view, x, 1e-5)
        expected = exact.backward(view, x, dy, None, 1e-5, known=known).dx
        shape = (n, 1) if columns else x.shape
        dx = fn.batch_norm_backward(dy.reshape(shape), fn.batch_norm_forward(x.reshape(shape), training=True)[1]).dx
        scale = strict_scales(view, known, dy, None, x.shape)[0]
        worst = max(worst, float(exact.ulp_error(dx.reshape(x.shape), expected, scale, np.float32).max()))
    assert worst <= 8, f"{worst:.3g} ULP"


@pytest.mark.parametrize("op", ["group_norm", "instance_norm"])
def test_parameter_gradients_that_cancel_between_samples(op: str) -> None:
    """Each sample's sums are exact, and so is what is left of them together."""
    x = np.random.default_rng(0).standard_normal((3, 2, 300)).astype(np.float32)
    dy = np.zeros_like(x)
    dy[:, 0, 0] = 1e20, 1, -1e20
    groups = (1,) if op == "group_norm" else ()
    _, ctx = getattr(fn, f"{op}_forward")(x, *groups, weight=np.ones(2, np.float32), bias=np.zeros(2, np.float32))
    assert getattr(fn, f"{op}_backward")(dy, ctx).dbias.tolist() == [1, 0]
