"""Float64 arrays beyond a double's digits: unevaluated sums hi + lo (Dekker 1971, Knuth), for means of means.

Design. Only what switchable norm mixes: sums, products, means along an axis, and the softmax of a few numbers. The low part is
dropped where the high part is not finite.
"""

from __future__ import annotations

import decimal
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


class Pair:
    """hi + lo, with |lo| at most half an ULP of hi."""

    def __init__(self, hi: Any, lo: Any = 0.0) -> None:
        self.hi: Array = np.asarray(hi, np.float64)
        self.lo: Array = np.where(np.isfinite(self.hi), lo, 0.0)

    def __add__(self, other: Pair) -> Pair:
        s = self.hi + other.hi
        t = s - self.hi
        return _renormalized(s, (self.hi - (s - t)) + (other.hi - t) + (self.lo + other.lo))

    def __sub__(self, other: Pair) -> Pair:
        return self + _part(-other.hi, -other.lo)

    def __mul__(self, other: Pair) -> Pair:
        p = self.hi * other.hi
        (ah, al), (bh, bl) = _halves(self.hi), _halves(other.hi)
        lost = ((ah * bh - p) + ah * bl + al * bh) + al * bl
        return _renormalized(p, lost + (self.hi * other.lo + self.lo * other.hi))

    def mean(self, axis: int) -> Pair:
        """The mean along an axis, kept: sums of halves, so that its digits are those of a short sum."""
        hi, lo = np.moveaxis(self.hi, axis, 0), np.moveaxis(self.lo, axis, 0)
        n, rest = hi.shape[0], _part(hi, lo)
        while rest.hi.shape[0] > 1:
            half, odd = divmod(rest.hi.shape[0], 2)
            total = _part(rest.hi[:half], rest.lo[:half]) + _part(rest.hi[half : 2 * half], rest.lo[half : 2 * half])
            if odd:
                total = _part(np.append(total.hi, rest.hi[-1:], 0), np.append(total.lo, rest.lo[-1:], 0))
            rest = total
        q = (rest.hi + rest.lo) / n
        r = rest - Pair(q) * Pair(float(n))
        quotient = _renormalized(q, (r.hi + r.lo) / n)
        return _part(np.moveaxis(quotient.hi, 0, axis), np.moveaxis(quotient.lo, 0, axis))


def _part(hi: Array, lo: Array) -> Pair:
    """Of a pair, or its negative: whose low part is in order."""
    r = Pair.__new__(Pair)
    r.hi, r.lo = hi, lo
    return r


def _renormalized(hi: Array, lo: Array) -> Pair:
    finite = np.isfinite(lo)  # what an infinity or an overflow of a half leaves has no meaning
    if not finite.all():
        lo = np.where(finite, lo, 0.0)
    s = np.asarray(hi + lo)
    low = np.asarray(lo - (s - hi))
    return _part(s, low) if np.isfinite(s).all() else Pair(s, low)


def _halves(a: Array) -> tuple[Array, Array]:
    c = a * 134217729.0
    high = c - (c - a)
    return high, a - high


def softmax(values: list[float]) -> list[Pair]:
    """exp(v) / Σexp, to a pair's digits; the values are finite."""
    context = decimal.Context(prec=40, traps=[])
    most = decimal.Decimal(max(values))
    powers = [context.exp(context.subtract(decimal.Decimal(v), most)) for v in values]
    total = decimal.Decimal(0)
    for power in powers:
        total = context.add(total, power)
    shares = [context.divide(p, total) for p in powers]
    return [Pair(float(s), float(context.subtract(s, decimal.Decimal(float(s))))) for s in shares]
