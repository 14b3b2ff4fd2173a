"""The softmax of a few numbers beyond a double's digits: unevaluated sums hi + lo, for the weights of switchable norm."""

from __future__ import annotations

import decimal

__all__ = ["softmax"]


def softmax(values: list[float]) -> list[tuple[float, float]]:
    """exp(v) / Σexp as pairs (hi, lo); the values are finite."""
    context = decimal.Context(prec=40, traps=[])
    most = decimal.Decimal(max(values))
    powers = [context.exp(context.subtract(decimal.Decimal(v), most)) for v in values]
    total = decimal.Decimal(0)
    for power in powers:
        total = context.add(total, power)
    shares = [context.divide(p, total) for p in powers]
    return [(float(s), float(context.subtract(s, decimal.Decimal(float(s))))) for s in shares]
