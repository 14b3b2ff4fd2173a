"""Dropout: the mask is a function of seed and position alone, one bit per element, and keeps the mean.

Method: the reference's Philox, element for element; statistics with bounds from the binomial distribution; the layouts,
sizes and threads that must not matter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import LENGTHS, Call, check_slopes, draw, dtype_of, every_dtype, machines, same_bits

import fastnorm as fn
from fastnorm import reference


@every_dtype
@pytest.mark.parametrize("n", [*LENGTHS, 8, 9, 64 * 1024 + 13])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999])
def test_mask_and_values_are_the_references(n: int, p: float, dtype: str, rng: np.random.Generator) -> None:
    """Bit for bit: the same words, threshold, and one rounding of x / (1 - p)."""
    x, dy = draw(rng, (n,), dtype_of(dtype)), draw(rng, (n,), dtype_of(dtype))
    for seed in (0, 1, 2**32 + 7, 2**64 - 1):
        y, ctx = fn.dropout_forward(x, p, seed=seed)
        z, twin = reference.dropout_forward(x, p, seed=seed)
        same_bits(y, z, f"p {p}, seed {seed}: y")
        same_bits(fn.dropout(x, p, seed=seed), z)
        dx = fn.dropout_backward(dy, ctx).dx
        same_bits(dx, reference.dropout_backward(dy, twin).dx, f"p {p}, seed {seed}: dx")


def test_gradient(rng: np.random.Generator) -> None:
    check_slopes(Call("dropout", {"x": rng.standard_normal((7, 19)), "p": 0.3, "seed": 3}), {"x": "dx"}, rng)


def test_mean_and_rate_are_kept() -> None:
    """Within five standard deviations of the binomial distribution, over a million elements."""
    x = np.ones((1000, 1000), np.float32)
    for p in (0.05, 0.5, 0.9):
        y = fn.dropout(x, p, seed=11)
        tolerance = 5 * np.sqrt(p * (1 - p) / x.size)
        assert abs((y == 0).mean() - p) < tolerance
        assert abs(y.mean(dtype=np.float64) - 1) < tolerance / (1 - p)
        neighbours = ((y[:, 1:] == 0) & (y[:, :-1] == 0)).mean()
        assert abs(neighbours - p * p) < 3 * tolerance


@every_dtype
def test_position_alone_counts(dtype: str, rng: np.random.Generator) -> None:
    """A longer array begins with the mask of a shorter one; shape and memory do not matter; other seeds differ."""
    x = draw(rng, (7, 11, 13), dtype_of(dtype), 5, 0.1)
    y = fn.dropout(x, 0.4, seed=9)
    same_bits(fn.dropout(x.ravel(), 0.4, seed=9), y.ravel())
    same_bits(fn.dropout(x.ravel()[:500], 0.4, seed=9), y.ravel()[:500])
    same_bits(fn.dropout(np.asfortranarray(x), 0.4, seed=9), y)
    same_bits(fn.dropout(np.ascontiguousarray(x[::-1])[::-1], 0.4, seed=9), y)
    assert ((fn.dropout(x, 0.4, seed=10) == 0) != (y == 0)).any()


def test_same_seed_same_mask_on_every_machine(rng: np.random.Generator) -> None:
    x = draw(rng, (300007,), np.float32)
    first = fn.dropout(x, 0.5, seed=5)
    for machine in machines():
        same_bits(fn.dropout(x, 0.5, seed=5), first, machine)


def test_without_a_seed_masks_differ_and_the_context_knows_its_own(rng: np.random.Generator) -> None:
    x = np.ones(1000, np.float32)
    assert (fn.dropout(x) != fn.dropout(x)).any()
    y, ctx = fn.dropout_forward(x)
    same_bits(fn.dropout_backward(x, ctx).dx, y)
    same_bits(fn.dropout(x, seed=ctx.seed), y)


@every_dtype
def test_not_training_is_the_identity(dtype: str, rng: np.random.Generator) -> None:
    """A copy, whatever p: y never shares memory with x unless `out` says so."""
    x = draw(rng, (5, 7), dtype_of(dtype))
    for call in (lambda: fn.dropout(x, 0.9, False), lambda: fn.dropout_forward(x, 0.9, False)[0]):
        y = call()
        same_bits(y, x)
        assert not np.shares_memory(x, y)
    _, ctx = fn.dropout_forward(x, 0.9, training=False)
    same_bits(fn.dropout_backward(x, ctx).dx, x)
    same_bits(fn.dropout(x, 0.0), x)


@every_dtype
def test_what_is_dropped_is_zero_whatever_it_was(dtype: str) -> None:
    """+0 where dropped, also of NaN, infinities and negative numbers; the others propagate."""
    kept = fn.dropout(np.ones(1000, dtype_of(dtype)), 0.5, seed=2) != 0
    for bad in (np.nan, np.inf, -1.0):
        y = fn.dropout(np.full(1000, bad, dtype_of(dtype)), 0.5, seed=2)
        same_bits(y[~kept], np.zeros((~kept).sum(), y.dtype))
        np.testing.assert_array_equal(y[kept].astype(np.float64), 2 * bad)


def test_output_may_be_the_input(rng: np.random.Generator) -> None:
    """The context keeps bits, not x."""
    x = draw(rng, (9, 67), np.float32)
    y, ctx = fn.dropout_forward(x.copy(), 0.5, seed=1)
    mine = x.copy()
    z, twin = fn.dropout_forward(mine, 0.5, seed=1, out=mine)
    assert z is mine
    same_bits(z, y)
    same_bits(fn.dropout_backward(x, twin).dx, fn.dropout_backward(x, ctx).dx)


def test_nothing() -> None:
    y, ctx = fn.dropout_forward(np.zeros((3, 0), np.float32), 0.5)
    assert y.shape == (3, 0) and fn.dropout_backward(y, ctx).dx.shape == (3, 0)


@pytest.mark.parametrize("p", [1.0, 1, -0.1, 2, np.nan, np.inf])
def test_p_outside_its_range(p: Any) -> None:
    with pytest.raises(ValueError, match=r"\bp\b"):
        fn.dropout(np.ones(3, np.float32), p)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "1"])
def test_seed_outside_its_range(seed: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="seed"):
        fn.dropout(np.ones(3, np.float32), seed=seed)
