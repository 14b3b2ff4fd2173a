"""Errors of layer norm, in ULP, on data that broke other packages: fastnorm, NumPy, PyTorch and JAX side by side.

Rows are the numeric cases of the tests in float32, each row of values under its own mean and variance, without gamma and
beta. The exact result comes from `tests/exact.py`. An error is the largest difference in a row divided by the spacing of
float32 at the row's largest output (at 1 where every output is 0): the measure that forgives most. NumPy is the textbook's
two passes, (x - x.mean()) / sqrt(x.var() + eps), in float32.

    python bench/accuracy.py              y
    python bench/accuracy.py --backward   dx for a random dy (JAX and PyTorch by their automatic differentiation)
    python bench/accuracy.py --search     fastnorm's largest errors, element by element, over random rows

Prints tables in Markdown. Libraries that are not installed are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import fastnorm as fn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
exact = importlib.import_module("exact")  # the tests' own exact values

Array = np.ndarray
Norm = Callable[[Array, Array, float], tuple[Array, Array]]  # (x, dy, eps) -> (y, dx)

NORMAL = exact.Case("N(0, 1)", "", "", lambda rng: rng.standard_normal((4, 1000)))
NAMES = {
    "four_values_mean_2000": "4 values, mean 2000, std 1",
    "rows_of_32768_around_100": "32768 values, mean 100, std 0.01",
    "consecutive_integers_at_40000": "40000, 40001, 40002, 40003",
    "constant_1234": "constant 1234",
    "mean_1449_small_spread": "mean 1449, std 1 to 1e-3",
    "sixteen_steps": "16 steps of 1e-3, from 0 to 1e4",
    "constant_14": "constant 14, eps 1e-6",
    "constant_1e10": "constant 1e10",
    "values_near_1e30": "1e30·N(0, 1)",
    "values_near_1e-30": "1e-30·N(0, 1), eps 0",
    "denormals_of_float32": "1e-40·N(0, 1), eps 1e-12",
    "zeros_tiny_eps": "zeros, eps 1e-12",
    "float16_square_overflows": "300 to 65000, either sign",
    "base_1e5_spread_1e-2": "mean 1e5, std 0.01",
    "first_element_1e8": "N(0, 1) after a first element of 1e8",
    "linear_ramp": "ramp from 0 to 1e6 over 1e6 values",
    "mean_1e3_std_1": "mean 1e3, std 1",
    "mean_1e6_std_1": "mean 1e6, std 1",
}


def ours(x: Array, dy: Array, eps: float) -> tuple[Array, Array]:
    y, ctx = fn.layer_norm_forward(x, x.shape[1:], eps=eps)
    return y, fn.layer_norm_backward(dy, ctx).dx


def textbook(x: Array, dy: Array, eps: float) -> tuple[Array, Array]:
    rstd = 1 / np.sqrt(x.var(axis=1, keepdims=True) + np.float32(eps))
    xhat = (x - x.mean(axis=1, keepdims=True)) * rstd
    projected = xhat * (dy * xhat).mean(axis=1, keepdims=True)
    return xhat, rstd * (dy - dy.mean(axis=1, keepdims=True) - projected)


def torch_norm() -> Norm:
    import torch

    def norm(x: Array, dy: Array, eps: float) -> tuple[Array, Array]:
        t = torch.from_numpy(x.copy()).requires_grad_()
        y = torch.nn.functional.layer_norm(t, t.shape[1:], eps=eps)
        y.backward(torch.from_numpy(dy))
        assert t.grad is not None
        return y.detach().numpy(), t.grad.numpy()

    return norm


def jax_norm() -> Norm:
    import jax
    import jax.numpy as jnp

    def forward(x: Any, eps: float) -> Any:
        mean, var = jnp.mean(x, 1, keepdims=True), jnp.var(x, 1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(var + eps)

    def norm(x: Array, dy: Array, eps: float) -> tuple[Array, Array]:
        y, back = jax.vjp(jax.jit(lambda x: forward(x, eps)), jnp.asarray(x))
        return np.asarray(y), np.asarray(back(jnp.asarray(dy))[0])

    return norm


def contenders() -> dict[str, Norm]:
    found: dict[str, Norm] = {"fastnorm": ours, "NumPy": textbook}
    for package, name, make in (("torch", "PyTorch", torch_norm), ("jax", "JAX", jax_norm)):
        if importlib.util.find_spec(package):
            found[f"{name} {sys.modules.get(package, __import__(package)).__version__}"] = make()
    return found


def error(got: Array, expected: Array, scale: Array) -> float:
    """The largest error of any row in ULP of that row's largest scale."""
    size = scale.max(axis=1, keepdims=True)
    size = np.where((size == 0) | ~np.isfinite(size), 1, size)
    return float(exact.ulp_error(got, expected, np.broadcast_to(size, got.shape), np.float32).max())


def show(value: float) -> str:
    if np.isinf(value):
        return "NaN or Inf"
    return f"{value:.1f}" if value < 1000 else f"{value:.1e}".replace("e+0", "e")


def record(worst: dict[str, float], what: str, got: Array, expected: Array, scale: Array) -> None:
    worst[what] = max(worst[what], float(exact.ulp_error(got, expected, scale, np.float32).max()))


def search(rounds: int = 400) -> None:
    """Largest errors at the scales of the promises, by the length of the rows: random mean, deviation, gamma, beta, dy."""
    print("| values in a row | mean | var | y | y with gamma, beta | dx | dx with gamma |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for m in (2, 3, 8, 16, 100, 1000, 5000):
        rng = np.random.default_rng(m)
        worst = dict.fromkeys(("mean", "var", "y", "affine", "dx", "dx affine"), 0.0)
        for _ in range(max(8, rounds // (1 + m // 100))):
            rows = max(4, 4000 // m)
            mean, std = 10 ** rng.uniform(-3, 6, (2, rows, 1))
            x = (mean + std * rng.standard_normal((rows, m))).astype(np.float32)
            gamma, beta, dy = (rng.standard_normal(n).astype(np.float32) for n in (m, m, (rows, m)))
            v, eps = exact.view("layer", x.shape), 1e-5
            known = exact.standardise(v, x, eps)

            note = partial(record, worst)
            f = exact.forward(v, x, None, None, eps, known=known)
            deviation = np.sqrt(f.var)
            got_mean, got_var = fn.moments(x, axis=1)
            note("mean", got_mean, f.mean, np.maximum(np.abs(f.mean), deviation))
            note("var", got_var, f.var, f.var)
            y, dx = ours(x, dy, eps)
            note("y", y, f.y, f.scale)
            b = exact.backward(v, x, dy, None, eps, known=known)
            note("dx", dx, b.dx, b.dx_scale)
            y, ctx = fn.layer_norm_forward(x, x.shape[1:], gamma, beta, eps)
            f = exact.forward(v, x, gamma, beta, eps, known=known)
            note("affine", y, f.y, f.scale)
            b = exact.backward(v, x, dy, gamma, eps, known=known)
            note("dx affine", fn.layer_norm_backward(dy, ctx).dx, b.dx, b.dx_scale)
        print(f"| {m} | {' | '.join(f'{e:.2f}' for e in worst.values())} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backward", action="store_true", help="errors of dx in place of those of y")
    parser.add_argument("--search", action="store_true", help="fastnorm alone, on random rows")
    options = parser.parse_args()
    if options.search:
        return search()
    backward = options.backward
    norms = contenders()
    print(f"| float32 rows, {'dx' if backward else 'y'} | {' | '.join(norms)} |")
    print("|---|" + "---:|" * len(norms))
    for case in (NORMAL, *exact.CASES):
        x = case.rows(np.float32)
        if x is None or not x.any() and case.name == "denormals_of_float64":
            continue  # a case of float64
        eps = case.eps[-1]
        dy = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
        v = exact.view("layer", x.shape)
        known = exact.standardise(v, x, eps)
        if backward:
            b = exact.backward(v, x, dy, None, eps, known=known)
            expected, scale = b.dx, b.dx_scale
        else:
            expected = exact.forward(v, x, None, None, eps, known=known).y
            scale = np.abs(expected)
        cells = []
        for norm in norms.values():
            with np.errstate(all="ignore"):
                cells.append(show(error(norm(x, dy, eps)[backward], expected, scale)))
        print(f"| {NAMES.get(case.name, case.name)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
