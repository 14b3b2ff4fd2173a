"""Layer normalization (Ba, Kiros and Hinton 2016, arXiv:1607.06450) and RMS normalization (Zhang and Sennrich 2019,
arXiv:1910.07467)."""
cimport numpy as cnp
import numpy as np

from fastnorm._kernels.c cimport FN_F64
from fastnorm.functional._check cimport dtype_of
from fastnorm.functional._rows cimport RowsContext, backward, forward

cnp.import_array()

__all__ = [
    "layer_norm", "layer_norm_backward", "layer_norm_forward",
    "rms_norm", "rms_norm_backward", "rms_norm_forward",
]

cdef double EPS32 = np.finfo(np.float32).eps
cdef double EPS64 = np.finfo(np.float64).eps


def layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5, *, residual=None, out=None):
    """y = (s - mean) / sqrt(var + eps) · weight + bias with s = x + residual; one mean and variance per row.

    A row is everything in the trailing axes `normalized_shape`; mean = Σs/n, var = Σ(s - mean)²/n over its n elements.
    Ba, Kiros and Hinton 2016, arXiv:1607.06450.

    Parameters
    ----------
    x : array (..., *normalized_shape), float32, float64, float16 or bfloat16
        Copied once unless C-contiguous.
    normalized_shape : int or sequence of int
        x's last axes.
    weight, bias : array of shape normalized_shape, optional
        gamma and beta: x's dtype, or float32 with half types.
    eps : float
        ≥ 0 and finite.
    residual : array of x's shape and dtype, optional
        Added to x first; the sum is rounded to x's dtype. `layer_norm_forward` returns it as ctx.sum.
    out : array of x's shape, dtype and layout, optional
        x itself, or residual, is allowed.

    Returns
    -------
    y : array of x's shape and dtype
        float32 within 4 ULP at the scale |gamma·xhat| + |beta|; a row's result does not depend on the others, nor its bits
        on threads or instruction set.

    Raises
    ------
    TypeError, ValueError
        Before anything is written.
    """
    return forward("layer_norm", x, normalized_shape, weight, bias, eps, residual, out, False)[0]


def layer_norm_forward(x, normalized_shape, weight=None, bias=None, eps=1e-5, *, residual=None, out=None):
    """(y, ctx): `layer_norm`, and what `layer_norm_backward` needs.

    ctx refers to x (or to ctx.sum = x + residual, a new array) and weight, which must not change before the backward, and
    holds each row's mean and rstd (ctx.mean, ctx.rstd, float64). out must not overlap x, unless there is a residual.
    """
    return forward("layer_norm", x, normalized_shape, weight, bias, eps, residual, out, True)


def layer_norm_backward(dy, ctx, *, out=None):
    """dx = rstd·(g - Σg/n - xhat·Σ(g·xhat)/n) with g = dy·weight; dweight = Σ_rows dy·xhat, dbias = Σ_rows dy.

    Parameters
    ----------
    dy : array of x's shape and dtype
    ctx
        From `layer_norm_forward`.
    out : array of x's shape and dtype, optional
        Receives dx; dy itself is allowed.

    Returns
    -------
    (dx, dweight, dbias), and dresidual where there was a residual : named tuple
        dweight, dbias are float32 (float64 for float64 x), None where the parameter was None. dresidual is dx. A gradient that
        arrives through ctx.sum adds to both.

    Raises
    ------
    TypeError, ValueError
        For a dy or out that does not match x, or a ctx of another function.
    """
    if type(ctx) is not RowsContext or (<RowsContext> ctx).op != "layer_norm":
        raise TypeError(f"ctx: expected the context of layer_norm_forward, got {ctx!r}")
    return backward(<RowsContext> ctx, dy, out)


cdef object rms_eps(object x, object eps):
    if eps is not None:
        return eps
    return EPS64 if dtype_of(x, "x") == FN_F64 else EPS32


def rms_norm(x, normalized_shape, weight=None, eps=None, *, residual=None, out=None):
    """y = s / sqrt(Σs²/n + eps) · weight with s = x + residual; one root mean square per row.

    A row is everything in the trailing axes `normalized_shape`, of n elements. Zhang and Sennrich 2019, arXiv:1910.07467.

    Parameters
    ----------
    x : array (..., *normalized_shape), float32, float64, float16 or bfloat16
        Copied once unless C-contiguous.
    normalized_shape : int or sequence of int
        x's last axes.
    weight : array of shape normalized_shape, optional
        gamma: x's dtype, or float32 with half types.
    eps : float, optional
        ≥ 0 and finite; by default the machine epsilon of the arithmetic (float32, or float64 for float64 x), as in torch.
    residual : array of x's shape and dtype, optional
        Added to x first; the sum is rounded to x's dtype. `rms_norm_forward` returns it as ctx.sum.
    out : array of x's shape, dtype and layout, optional
        x itself, or residual, is allowed.

    Returns
    -------
    y : array of x's shape and dtype
        float32 within 4 ULP of |gamma·xhat|; a row's result does not depend on the others.

    Raises
    ------
    TypeError, ValueError
        Before anything is written.
    """
    return forward("rms_norm", x, normalized_shape, weight, None, rms_eps(x, eps), residual, out, False)[0]


def rms_norm_forward(x, normalized_shape, weight=None, eps=None, *, residual=None, out=None):
    """(y, ctx): `rms_norm`, and what `rms_norm_backward` needs, as for `layer_norm_forward`."""
    return forward("rms_norm", x, normalized_shape, weight, None, rms_eps(x, eps), residual, out, True)


def rms_norm_backward(dy, ctx, *, out=None):
    """dx = rstd·(g - xhat·Σ(g·xhat)/n) with g = dy·weight, xhat = x·rstd; dweight = Σ_rows dy·xhat.

    Parameters
    ----------
    dy : array of x's shape and dtype
    ctx
        From `rms_norm_forward`.
    out : array of x's shape and dtype, optional
        Receives dx; dy itself is allowed.

    Returns
    -------
    (dx, dweight, None), and dresidual where there was a residual : named tuple
        As of `layer_norm_backward`; RMS norm has no bias.

    Raises
    ------
    TypeError, ValueError
        For a dy or out that does not match x, or a ctx of another function.
    """
    if type(ctx) is not RowsContext or (<RowsContext> ctx).op != "rms_norm":
        raise TypeError(f"ctx: expected the context of rms_norm_forward, got {ctx!r}")
    return backward(<RowsContext> ctx, dy, out)
