"""Dropout: zero with probability p, the rest divided by 1 - p; the mask is a function of seed and position alone.

The random words are Philox's, which counts: word i of a seed is computed from i, so any part of a mask can be.
"""

from __future__ import annotations

import math
import operator

import numpy as np
from numpy.typing import NDArray

from ._arithmetic import _select
from ._checks import _array, _check_out
from ._shapes import _compute, _compute_dtype, _store
from ._types import Array, Context, InputGrad

__all__ = ["dropout", "dropout_backward", "dropout_forward"]


def dropout(
    x: Array, p: float = 0.5, training: bool = True, *, seed: int | None = None, out: Array | None = None
) -> Array:
    """y_i = x_i / (1 - p) if r_i >= floor(p * 2^32) else 0, r_i a 32-bit random word; not training, y = x.

    r is a function of the seed and the position alone: word i % 4 of Philox4x32-10 with the seed's low and high 32 bits
    as key and block i // 4 as counter, i being the flat index in C order. seed=None draws one. A dropped element is +0,
    also where x is not finite. 1 / (1 - p) is computed in float64 and rounded to the compute dtype.

    x has any shape; dtypes as `batch_norm`. Errors: TypeError for a dtype; ValueError unless 0 <= p < 1 and
    0 <= seed < 2^64.
    Source: Srivastava et al., "Dropout", 2014; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
    """
    _check_out(out, _array("x", x))
    y, _ = dropout_forward(x, p, training, seed=seed)
    return _store(y, y, out)


def dropout_forward(
    x: Array, p: float = 0.5, training: bool = True, *, seed: int | None = None, out: Array | None = None
) -> tuple[Array, Context]:
    """`dropout`, and the context for `dropout_backward`: one bit per element, `ctx.mask`, not x, so `out` may be x."""
    x = _array("x", x)
    if not 0 <= p < 1:
        raise ValueError(f"p: expected 0 <= p < 1, got {p!r}")
    if seed is None:
        seed = int(np.random.default_rng().integers(2**64, dtype=np.uint64))
    elif not 0 <= operator.index(seed) < 2**64:
        raise ValueError(f"seed: expected 0 <= seed < 2**64, got {seed!r}")
    _check_out(out, x)
    if not training:
        return _store(np.copy(x), x, out), Context(shape=x.shape, dtype=x.dtype, mask=None, scale=1.0, seed=seed)
    keep = _random_words(operator.index(seed), x.size) >= math.floor(p * 2**32)
    scale = _compute_dtype(x).type(1 / (1 - p))
    y = _store(_select(keep.reshape(x.shape), _compute(x) * scale), x, out)
    mask = np.packbits(keep, bitorder="little")
    return y, Context(shape=x.shape, dtype=x.dtype, mask=mask, scale=scale, seed=seed)


def dropout_backward(dy: Array, ctx: Context, *, out: Array | None = None) -> InputGrad:
    """dx_i = dy_i / (1 - p) where x_i was kept, else 0. `out` receives dx."""
    dy = _array("dy", dy)
    if dy.shape != ctx.shape or dy.dtype != ctx.dtype:
        raise ValueError(f"dy: expected {ctx.dtype} of shape {ctx.shape}, got {dy.dtype} of shape {dy.shape}")
    _check_out(out, dy)
    if ctx.mask is None:
        return InputGrad(_store(np.copy(dy), dy, out))
    keep = np.unpackbits(ctx.mask, count=dy.size, bitorder="little").astype(bool).reshape(dy.shape)
    return InputGrad(_store(_select(keep, _compute(dy) * ctx.scale), dy, out))


def _random_words(seed: int, n: int) -> NDArray[np.uint64]:
    """The first n words of Philox4x32-10 under this seed, counting blocks of four from 0."""
    block = np.arange(-(-n // 4), dtype=np.uint64)
    zero = np.zeros_like(block)
    words = _philox4x32((block & _LOW, block >> 32, zero, zero), (seed & _LOW, seed >> 32))
    return np.stack(words, axis=-1).reshape(-1)[:n]


_LOW = 0xFFFFFFFF


def _philox4x32(counter: tuple[Array, Array, Array, Array], key: tuple[int, int]) -> tuple[Array, Array, Array, Array]:
    """Ten rounds of two 32 x 32 -> 64 bit products; constants and order of Salmon et al. 2011, section 3.2 and table
    2."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (product1 >> 32) ^ c1 ^ k0, product1 & _LOW, (product0 >> 32) ^ c3 ^ k1, product0 & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3
