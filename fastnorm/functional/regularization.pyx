"""Inverted dropout (Srivastava et al. 2014) with counter-based random words (Philox; Salmon et al. 2011)."""
cimport numpy as cnp
import numpy as np
import os
from cython.parallel cimport prange
from libc.math cimport floor
from libc.stdint cimport uint64_t

from fastnorm._kernels.c cimport FN_CHUNK, fn_ops
from fastnorm._kernels.core cimport memory_flags, ops_for, threads_for
from fastnorm.functional._check cimport apart, dtype_of, fraction_of, output
from fastnorm._types import InputGrad

cnp.import_array()

__all__ = ["dropout", "dropout_backward", "dropout_forward"]


cdef class DropoutContext:
    """What the backward needs: one bit per element."""
    cdef readonly object shape, seed
    cdef cnp.ndarray bits  # None when not training: then everything passes
    cdef int dtype
    cdef double scale

    def __repr__(self):
        return f"<fastnorm dropout context, x of shape {self.shape}>"

    @property
    def mask(self):
        """The bits, eight to a byte, little end first, in C order; None when not training."""
        if self.bits is None:
            return None
        return self.bits.view(np.uint8)[:(int(np.prod(self.shape)) + 7) // 8]


cdef void drop_chunk(const fn_ops *ops, const char *x, char *y, uint64_t *bits, Py_ssize_t u, Py_ssize_t size, uint64_t seed,
                     uint64_t threshold, double scale, int flags) noexcept nogil:
    cdef Py_ssize_t start = u * FN_CHUNK, n = size - start if size - start < FN_CHUNK else FN_CHUNK
    ops.dropout(x + start * ops.itemsize, y + start * ops.itemsize, bits + start // 64 if bits != NULL else NULL, start, n,
                seed, threshold, scale, flags)


cdef void drop(const fn_ops *ops, const char *x, char *y, uint64_t *bits, Py_ssize_t size, uint64_t seed, uint64_t threshold,
               double scale, int flags) noexcept nogil:
    cdef Py_ssize_t u
    cdef int threads = threads_for(size)
    if threads == 1:
        for u in range((size + FN_CHUNK - 1) // FN_CHUNK):
            drop_chunk(ops, x, y, bits, u, size, seed, threshold, scale, flags)
    else:
        for u in prange((size + FN_CHUNK - 1) // FN_CHUNK, schedule="static", num_threads=threads):
            drop_chunk(ops, x, y, bits, u, size, seed, threshold, scale, flags)


cdef void pass_chunk(const fn_ops *ops, const char *dy, char *dx, const uint64_t *bits, Py_ssize_t u, Py_ssize_t size,
                     double scale, int flags) noexcept nogil:
    cdef Py_ssize_t start = u * FN_CHUNK, n = size - start if size - start < FN_CHUNK else FN_CHUNK
    ops.dropout_grad(dy + start * ops.itemsize, dx + start * ops.itemsize, bits + start // 64, n, scale, flags)


cdef void pass_kept(const fn_ops *ops, const char *dy, char *dx, const uint64_t *bits, Py_ssize_t size, double scale,
                    int flags) noexcept nogil:
    cdef Py_ssize_t u
    cdef int threads = threads_for(size)
    if threads == 1:
        for u in range((size + FN_CHUNK - 1) // FN_CHUNK):
            pass_chunk(ops, dy, dx, bits, u, size, scale, flags)
    else:
        for u in prange((size + FN_CHUNK - 1) // FN_CHUNK, schedule="static", num_threads=threads):
            pass_chunk(ops, dy, dx, bits, u, size, scale, flags)


cdef cnp.ndarray in_order(object a):
    """`a` itself where it is C-contiguous and aligned, else a copy: masks count elements in C order."""
    if cnp.PyArray_IS_C_CONTIGUOUS(a) and cnp.PyArray_ISALIGNED(a):
        return a
    return cnp.PyArray_NewCopy(a, cnp.NPY_CORDER)


cdef object finished(object y, object out, object x):
    """Results as the caller wants them: in `out`, or in x's own layout."""
    if out is not None:
        if out is not y:
            np.copyto(out, y)
        return out
    if cnp.PyArray_IS_C_CONTIGUOUS(x):
        return y
    result = np.empty_like(x)
    np.copyto(result, y)
    return result


cdef tuple forward(object x, object p, bint training, object seed, object out, bint keep):
    cdef DropoutContext ctx = DropoutContext.__new__(DropoutContext)
    cdef double fraction
    cdef cnp.ndarray work, y
    cdef Py_ssize_t size
    cdef uint64_t key = 0, threshold
    cdef const char *source
    cdef char *target
    cdef uint64_t *bits = NULL
    cdef int flags
    ctx.dtype = dtype_of(x, "x")
    fraction = fraction_of(p, "p")
    if fraction >= 1:
        raise ValueError(f"p: expected 0 <= p < 1, got {p!r}")
    if seed is not None:
        if isinstance(seed, bool) or not hasattr(seed, "__index__"):
            raise TypeError(f"seed: expected an integer, got {type(seed).__name__}")
        if not 0 <= seed.__index__() < 1 << 64:
            raise ValueError(f"seed: expected 0 <= seed < 2**64, got {seed!r}")
        key = seed.__index__()
    elif training:
        key = int.from_bytes(os.urandom(8), "little")
    ctx.shape, ctx.seed = x.shape, int(key)
    if out is not None:
        dtype_of(out, "out")
        apart(out, x, "x", True)
    work = in_order(x)
    y = output(out, x, work, ctx.dtype)
    if not training:
        np.copyto(y, work)
        return finished(y, out, x), ctx
    ctx.scale = 1 / (1 - fraction)
    threshold = <uint64_t> floor(fraction * 4294967296.0)
    size = cnp.PyArray_SIZE(work)
    if keep:
        ctx.bits = np.empty((size + 63) // 64, np.uint64)
        bits = <uint64_t *> cnp.PyArray_DATA(ctx.bits)
    source, target = <const char *> cnp.PyArray_DATA(work), <char *> cnp.PyArray_DATA(y)
    flags = memory_flags(cnp.PyArray_NBYTES(y))
    with nogil:
        drop(ops_for(ctx.dtype), source, target, bits, size, key, threshold, ctx.scale, flags)
    return finished(y, out, x), ctx


def dropout(x, p=0.5, training=True, *, seed=None, out=None):
    """y_i = x_i / (1 - p) where r_i ≥ p, else 0, r_i uniform in [0, 1): inverted dropout. Not training, y = x.

    r is a function of the seed and the position alone, never of threads: word i mod 4 of Philox4x32-10 under the seed at
    counter i / 4, over 2³², i being the flat index in C order. Srivastava et al. 2014, "Dropout"; Salmon et al. 2011,
    "Parallel random numbers: as easy as 1, 2, 3".

    Parameters
    ----------
    x : array of any shape, float32, float64, float16 or bfloat16
        Copied once unless C-contiguous.
    p : float
        The probability to drop an element, 0 ≤ p < 1.
    training : bool
    seed : int, optional
        0 ≤ seed < 2**64; the same seed gives the same mask. None draws one.
    out : array of x's shape, dtype and layout, optional
        x itself is allowed.

    Returns
    -------
    y : array of x's shape, dtype and layout
        A dropped element is +0, also where x is not finite.

    Raises
    ------
    TypeError, ValueError
        Before anything is written.
    """
    return forward(x, p, training, seed, out, False)[0]


def dropout_forward(x, p=0.5, training=True, *, seed=None, out=None):
    """(y, ctx): `dropout`, and what `dropout_backward` needs: one bit per element (ctx.mask), not x. out may be x."""
    return forward(x, p, training, seed, out, True)


def dropout_backward(dy, ctx, *, out=None):
    """dx_i = dy_i / (1 - p) where x_i was kept, else 0.

    Parameters
    ----------
    dy : array of x's shape and dtype
    ctx
        From `dropout_forward`.
    out : array of dy's shape, dtype and layout, optional
        Receives dx; dy itself is allowed.

    Returns
    -------
    (dx,) : named tuple

    Raises
    ------
    TypeError, ValueError
        For a dy or out that does not match x, or a ctx of another function.
    """
    cdef DropoutContext c
    cdef cnp.ndarray work, dx
    cdef const char *source
    cdef char *target
    cdef const uint64_t *bits
    cdef Py_ssize_t size
    cdef int flags
    if type(ctx) is not DropoutContext:
        raise TypeError(f"ctx: expected the context of dropout_forward, got {ctx!r}")
    c = <DropoutContext> ctx
    if dtype_of(dy, "dy") != c.dtype:
        raise TypeError(f"dy: expected the dtype that x had, got {dy.dtype}")
    if dy.shape != c.shape:
        raise ValueError(f"dy: expected shape {c.shape}, as x had, got {dy.shape}")
    if out is not None:
        dtype_of(out, "out")
        apart(out, dy, "dy", True)
    work = in_order(dy)
    dx = output(out, dy, work, c.dtype)
    if c.bits is None:
        np.copyto(dx, work)
        return InputGrad(finished(dx, out, dy))
    size = cnp.PyArray_SIZE(work)
    source, target, bits = <const char *> cnp.PyArray_DATA(work), <char *> cnp.PyArray_DATA(dx), <const uint64_t *> cnp.PyArray_DATA(c.bits)
    flags = memory_flags(cnp.PyArray_NBYTES(dx))
    with nogil:
        pass_kept(ops_for(c.dtype), source, target, bits, size, c.scale, flags)
    return InputGrad(finished(dx, out, dy))
