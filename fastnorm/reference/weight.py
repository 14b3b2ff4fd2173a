"""Weight norm: w = g * v / ||v||, direction and length of each slice of the weight apart."""

from __future__ import annotations

import numpy as np

from ._checks import _array, _axis, _check_out, _check_parameter_dtype, _gradient
from ._shapes import _all_but, _compute, _store
from ._types import Array, Context, WeightNormGrads

__all__ = ["weight_norm", "weight_norm_backward", "weight_norm_forward"]


def weight_norm(v: Array, g: Array, dim: int | None = 0) -> Array:
    """w = g * v / ||v||, one Euclidean norm per index of axis `dim` (dim=None: one norm for the whole array).

    g has v's shape with every axis but `dim` of length 1, as in torch, or simply (v.shape[dim],); with dim=None, one
    element. A negative `dim` counts from the end.

    dtypes as `batch_norm`. Errors: TypeError for a dtype; ValueError for a shape, `dim`, or a v of norm zero.
    Source: Salimans and Kingma, "Weight Normalization", 2016, equation 2.
    """
    w, _ = weight_norm_forward(v, g, dim)
    return w


def weight_norm_forward(v: Array, g: Array, dim: int | None = 0) -> tuple[Array, Context]:
    """`weight_norm`, and the context for `weight_norm_backward`."""
    v = _array("v", v)
    kept = () if dim is None else (_axis(dim, v.ndim, "dim"),)
    axes = _all_but(v.ndim, *kept)
    wide = tuple(n if i in kept else 1 for i, n in enumerate(v.shape))
    g = _array("g", g)
    if g.shape not in (wide, tuple(v.shape[i] for i in kept)):
        raise ValueError(f"g: expected shape {wide}, got {g.shape}")
    _check_parameter_dtype("g", g, v)

    values = _compute(v)
    norm = np.sqrt((values * values).sum(axis=axes, keepdims=True))
    if v.size and not norm.all():
        raise ValueError(f"v: expected a norm above zero, got zero at index {int(np.argmin(norm))} of dim {dim}")
    w = _store(values * (_compute(g).reshape(wide) / norm) if v.size else values, v, None)
    return w, Context(v=v, g=g, axes=axes, norm=norm)


def weight_norm_backward(dw: Array, ctx: Context, *, out: Array | None = None) -> WeightNormGrads:
    """dg = sum(dw * v) / ||v||;  dv = g / ||v|| * (dw - dg * v / ||v||), as equation 3 of the paper. `out` receives
    dv."""
    v = ctx.v
    dw = _gradient(dw, v, "dw")
    _check_out(out, v)
    d = _compute(dw)
    unit = _compute(v) / ctx.norm if v.size else _compute(v)
    dg = (d * unit).sum(axis=ctx.axes, keepdims=True)
    dv = (d - dg * unit) * (_compute(ctx.g).reshape(ctx.norm.shape) / ctx.norm) if v.size else d
    return WeightNormGrads(_store(dv, v, out), dg.reshape(ctx.g.shape))
