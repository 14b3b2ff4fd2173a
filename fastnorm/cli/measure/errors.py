"""Error: the float64 reference on the very same input, compared in units in the last place (ULP) of the storage type.

The unit is taken at the scale of the terms: |gamma * xhat| + |beta| forward, the three terms of the gradient formula
backward. It runs over chunks that share no statistic, so that its memory stays small.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from fastnorm.cli.measure.problems import CHANNEL_OPS, EPS, Array, Problem

__all__ = ["error_of", "ulp"]


# Explicit mantissa bits and smallest normal exponent.
FORMATS = {"float16": (10, -14), "bfloat16": (7, -126), "float32": (23, -126), "float64": (52, -1022)}


def ulp(scale: Array, dtype: str) -> Array:
    """The distance between neighbouring numbers of `dtype` at the magnitude `scale` (float64)."""
    bits, smallest = FORMATS[dtype]
    exponent = np.frexp(scale)[1] - 1
    return np.ldexp(1.0, np.maximum(np.where(scale > 0, exponent, smallest), smallest) - bits)


def error_of(problem: Problem, module: ModuleType, *, chunks: int | None = None) -> tuple[float, float]:
    """Largest error of `module` on the row, (absolute, in ULP at the scale of the terms), against the float64
    reference.

    `chunks` limits how many pieces of about a million elements are looked at (evenly spaced); None looks at all.
    """
    running = problem.running_mean.copy(), problem.running_var.copy()
    got = problem.result(module)
    # The call has moved the running statistics; evaluation is judged by those it read.
    problem.running_mean[:], problem.running_var[:] = running
    absolute = relative = 0.0
    pieces = list(_pieces(problem))
    if chunks is not None and chunks < len(pieces):
        pieces = [pieces[i] for i in np.linspace(0, len(pieces) - 1, chunks).astype(int)]
    for where in pieces:
        exact, scale = _exact(problem, where)
        difference = np.abs(got[where].astype(np.float64) - exact)
        absolute = max(absolute, float(difference.max(initial=0.0)))
        relative = max(relative, float((difference / ulp(scale, problem.row.dtype)).max(initial=0.0)))
    return absolute, relative


def _pieces(problem: Problem) -> Iterator[tuple[Any, ...]]:
    """Index expressions that cut x where no statistic is shared: BN by channels, the others by samples or rows."""
    row, shape = problem.row, problem.x.shape
    if row.op in ("switchable_norm", "dropout", "cross_entropy"):
        yield (...,)
        return
    axis = (row.axis % len(shape)) if row.op == "batch_norm" else 0
    step = max(1, int(1e6 * shape[axis] / problem.x.size))
    for start in range(0, shape[axis], step):
        yield (*[slice(None)] * axis, slice(start, start + step))


def _exact(problem: Problem, where: tuple[Any, ...]) -> tuple[Array, Array]:
    """(float64 result, scale of its terms) on one piece."""
    from fastnorm import reference

    row = problem.row
    cut = where[-1] if row.op in ("batch_norm", "weight_norm") else slice(None)
    piece = object.__new__(Problem)
    piece.row = row
    piece.x = problem.x[where].astype(np.float64)
    piece.dy = problem.dy[where].astype(np.float64) if problem.dy.ndim else problem.dy.astype(np.float64)
    for name in ("weight", "bias", "running_mean", "running_var"):
        setattr(piece, name, getattr(problem, name)[cut].astype(np.float64))
    piece.mean_logits, piece.var_logits = problem.mean_logits.astype(np.float64), problem.var_logits.astype(np.float64)
    piece.targets = problem.targets
    exact = piece.result(reference)
    if row.direction == "backward":
        return exact, _backward_scale(piece, exact)
    if row.op in ("weight_norm", "softmax", "log_softmax", "cross_entropy", "dropout"):
        return exact, np.abs(exact)
    bias = 0.0 if row.op == "rms_norm" else _spread(piece, piece.bias)
    return exact, np.abs(exact - bias) + np.abs(bias)


def _spread(problem: Problem, parameter: Array) -> Array:
    """A parameter shaped to broadcast against x."""
    if problem.row.op not in CHANNEL_OPS or problem.row.layout == "nhwc":
        return parameter
    return parameter.reshape(-1, *[1] * (problem.x.ndim - 2))


def _backward_scale(piece: Problem, exact: Array) -> Array:
    """The sum of the magnitudes of the terms that the gradient formula subtracts from each other."""
    row, x, dy = piece.row, piece.x, piece.dy
    if row.op == "dropout":
        return np.abs(exact)
    if row.op == "weight_norm":
        axes = tuple(range(1, x.ndim))
        norm = np.sqrt(np.sum(x * x, axis=axes, keepdims=True))
        g = piece.weight.reshape(norm.shape) / norm
        return np.abs(g * dy) + np.abs(g * x * np.sum(dy * x, axis=axes, keepdims=True) / norm**2)
    if row.op in ("softmax", "log_softmax", "cross_entropy"):
        # The context keeps p rounded, so each term of a sum brings its own error: magnitudes inside the sums.
        shifted = np.exp(x - x.max(axis=-1, keepdims=True))
        p = shifted / shifted.sum(axis=-1, keepdims=True)
        if row.op == "softmax":
            return p * (np.abs(dy) + np.sum(np.abs(dy) * p, axis=-1, keepdims=True))
        if row.op == "log_softmax":
            return np.abs(dy) + p * np.sum(np.abs(dy), axis=-1, keepdims=True)
        p[np.arange(len(p)), piece.targets] += 1
        return p / len(p)

    # The norms: dx = rstd * (g - mean(g) - xhat * mean(g * xhat)), g = gamma * dy, each mean over one statistic's
    # elements.
    g = dy * _spread(piece, piece.weight)
    shape = x.shape
    if row.layout == "nhwc":
        x, g = np.moveaxis(x, -1, 1), np.moveaxis(g, -1, 1)
    if row.op == "group_norm":
        x, g = (a.reshape(a.shape[0], row.groups, -1, *a.shape[2:]) for a in (x, g))
    spatial = tuple(range(2, x.ndim))
    axes = {"batch_norm": (0, *spatial), "layer_norm": (-1,), "rms_norm": (-1,)}.get(row.op, spatial)
    mean = 0.0 if row.op == "rms_norm" else x.mean(axis=axes, keepdims=True)
    var = np.mean((x - mean) ** 2, axis=axes, keepdims=True)
    if row.op == "switchable_norm":
        # Its terms are those of three norms, weighted; the instance norm's, the largest, stand for them.
        var = np.maximum(var, var.mean())
    rstd = 1 / np.sqrt(var + EPS)
    xhat = (x - mean) * rstd
    middle = 0.0 if row.op == "rms_norm" else np.abs(g.mean(axis=axes, keepdims=True))
    scale = rstd * (np.abs(g) + middle + np.abs(xhat * np.mean(g * xhat, axis=axes, keepdims=True)))
    if row.layout == "nhwc":
        scale = np.moveaxis(scale.reshape(shape[0], shape[-1], *shape[1:-1]), 1, -1)
    return scale.reshape(shape)
