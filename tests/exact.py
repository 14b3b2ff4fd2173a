"""Exact values of the norms for the data as given, the measure of error, and the data that broke other implementations.

Method: the textbook formulas in a number type far wider than what is tested. float32 and half data are lifted to
`numpy.longdouble` (64-bit significand on x86), float64 data to `Wide`, an unevaluated sum of two longdoubles (128
bits).

Why that is exact enough: the rows are centred twice, d = (x - c) - mean(x - c) with c close to the mean. For 24-bit
data x - c is exact in 64 bits, so the centred values are wrong by 2^-64 of the *deviation*, times the log2(m) levels of
a pairwise sum, whatever the ratio of mean to deviation: less than 1e-10 float32 ULP. `Wide` gives float64 data 2^-120
in the same way, less than 1e-15 of its ULPs after a cancellation of 2^40. Exponents reach 1e4932, so no square
overflows or underflows. Where longdouble is no wider than double, `Wide` (106 bits there) serves every type.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

LONG = np.longdouble
LONG_BITS = np.finfo(LONG).nmant + 1
Array = NDArray[Any]

# ------------------------------------------------------------------------------------------------- the measure of error

# significand bits after the point, and smallest normal exponent
FORMATS = {"float16": (10, -14), "bfloat16": (7, -126), "float32": (23, -126), "float64": (52, -1022)}
LARGEST = {
    "float16": 65504.0,
    "bfloat16": 2.0**128 - 2.0**120,
    "float32": 2.0**128 - 2.0**104,
    "float64": 1.7976931348623157e308,
}


def spacing(scale: Any, dtype: Any) -> Array:
    """The distance between neighbours of `dtype` at |scale|; below the normal range, that of the denormals."""
    bits, lowest = FORMATS[np.dtype(dtype).name]
    scale = np.abs(np.asarray(scale, dtype=LONG))
    exponent = np.maximum(np.frexp(scale)[1] - 1, lowest)
    return np.ldexp(LONG(1), np.where(scale == 0, lowest, exponent) - bits)


def ulp_error(actual: Any, exact: Any, scale: Any, dtype: Any) -> Array:
    """|actual - exact| / spacing(scale), per element. Equal non-finite values count 0, unequal ones infinity."""
    actual = np.asarray(actual).astype(LONG)
    exact, scale = np.asarray(exact, dtype=LONG), np.asarray(scale, dtype=LONG)
    largest = LARGEST[np.dtype(dtype).name]
    exact = np.where(np.abs(exact) > largest * (1 + LONG(2) ** -30), np.copysign(LONG(np.inf), exact), exact)
    with np.errstate(invalid="ignore"):
        same = (actual == exact) | (np.isnan(actual) & np.isnan(exact))
        error = np.abs(actual - exact) / spacing(np.where(np.isfinite(scale), scale, 1), dtype)
    return np.where(same, LONG(0), np.where(np.isfinite(error), error, LONG(np.inf)))


def excess(actual: Array, exact: Any, scale: Any, bound: float) -> Array:
    """Error divided by what is allowed: `bound` ULP of the compute type, plus half an ULP of a narrower storage
    type."""
    compute = np.float64 if actual.dtype == np.float64 else np.float32
    allowed = bound * spacing(scale, compute)
    if actual.dtype not in (np.float32, np.float64):
        size = np.maximum(np.abs(np.asarray(exact, dtype=LONG)), np.abs(actual.astype(LONG)))
        allowed = allowed + spacing(np.where(np.isfinite(size), size, 1), actual.dtype) / 2
    return ulp_error(actual, exact, scale, actual.dtype) * spacing(scale, actual.dtype) / allowed


# ------------------------------------------------------------------------------------------------------ wide arithmetic


def _two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


_SPLIT = LONG(2) ** ((LONG_BITS + 1) // 2) + 1


def _halves(a: Any) -> tuple[Any, Any]:
    t = a * _SPLIT
    high = t - (t - a)
    return high, a - high


def _two_product(a: Any, b: Any) -> tuple[Any, Any]:
    p = a * b
    (ah, al), (bh, bl) = _halves(a), _halves(b)
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


class Wide:
    """An array of unevaluated sums hi + lo of longdoubles; Dekker's arithmetic, relative error about 2^-(2 * bits -
    6)."""

    __array_ufunc__ = None

    def __init__(self, hi: Any, lo: Any = None) -> None:
        self.hi = np.asarray(hi, dtype=LONG)
        self.lo = np.zeros_like(self.hi) if lo is None else np.asarray(lo, dtype=LONG)

    @staticmethod
    def of(value: Any) -> Wide:
        return value if isinstance(value, Wide) else Wide(value)

    @staticmethod
    def parse(value: Decimal) -> Wide:
        hi = LONG(str(value))
        top = float(hi)
        return Wide(hi, LONG(str(value - Decimal(top) - Decimal(float(hi - LONG(top))))))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.hi.shape

    def reshape(self, *shape: Any) -> Wide:
        return Wide(self.hi.reshape(*shape), self.lo.reshape(*shape))

    def transpose(self, *axes: Any) -> Wide:
        return Wide(self.hi.transpose(*axes), self.lo.transpose(*axes))

    def __neg__(self) -> Wide:
        return Wide(-self.hi, -self.lo)

    def __add__(self, other: Any) -> Wide:
        other = Wide.of(other)
        s, e = _two_sum(self.hi, other.hi)
        t, f = _two_sum(self.lo, other.lo)
        s, e = _quick(s, e + t)
        return Wide(*_quick(s, e + f))

    def __sub__(self, other: Any) -> Wide:
        return self + (-Wide.of(other))

    def __mul__(self, other: Any) -> Wide:
        other = Wide.of(other)
        p, e = _two_product(self.hi, other.hi)
        return Wide(*_quick(p, e + (self.hi * other.lo + self.lo * other.hi)))

    def __truediv__(self, other: Any) -> Wide:
        other = Wide.of(other)
        q = self.hi / other.hi
        rest = self - other * q
        q, r = _quick(q, rest.hi / other.hi)
        rest = self - other * Wide(q, r)
        return Wide(*_quick(q, r + rest.hi / other.hi))

    __radd__ = __add__
    __rmul__ = __mul__

    def __abs__(self) -> Wide:
        sign = np.where(self.hi < 0, LONG(-1), LONG(1))
        return Wide(self.hi * sign, self.lo * sign)

    def sqrt(self) -> Wide:
        """One Newton step from the longdouble root, which doubles its digits."""
        root = np.sqrt(self.hi)
        rest = self - Wide(root) * root
        return Wide(*_quick(root, np.where(root > 0, rest.hi / np.where(root > 0, 2 * root, 1), 0)))

    def sum(self, axis: int = -1, keepdims: bool = False) -> Wide:
        """Pairwise, along one axis."""
        hi, lo = np.moveaxis(self.hi, axis, -1), np.moveaxis(self.lo, axis, -1)
        if hi.shape[-1] == 0:
            total = Wide(np.zeros(hi.shape[:-1], LONG))
        else:
            while (n := hi.shape[-1]) > 1:
                half = n // 2
                pair = Wide(hi[..., :half], lo[..., :half]) + Wide(hi[..., half : 2 * half], lo[..., half : 2 * half])
                hi = np.concatenate([pair.hi, hi[..., 2 * half :]], axis=-1)
                lo = np.concatenate([pair.lo, lo[..., 2 * half :]], axis=-1)
            total = Wide(hi[..., 0], lo[..., 0])
        if keepdims:
            shape = list(self.shape)
            shape[axis] = 1
            return total.reshape(shape)
        return total


def _quick(s: Any, e: Any) -> tuple[Any, Any]:
    """Renormalise, |s| >= |e|."""
    total = s + e
    return total, e - (total - s)


def lift(values: Any, wide: bool = False) -> Any:
    """The values in a type in which the formulas are exact enough (the header says how exact)."""
    values = np.asarray(values)
    long = values.astype(LONG)
    return Wide(long) if wide or values.dtype == np.float64 or LONG_BITS < 64 else long


def lower(values: Any) -> Array:
    """Back to longdouble, rounded once."""
    return values.hi + values.lo if isinstance(values, Wide) else np.asarray(values, dtype=LONG)


def _root(values: Any) -> Any:
    return values.sqrt() if isinstance(values, Wide) else np.sqrt(values)


def _where(condition: Array, one: Any, other: Any) -> Any:
    if isinstance(other, Wide):
        return Wide(np.where(condition, one.hi, other.hi), np.where(condition, one.lo, other.lo))
    return np.where(condition, one, other)


def _mean(values: Any) -> Any:
    return values.sum(axis=-1, keepdims=True) / LONG(max(values.shape[-1], 1))


# ---------------------------------------------------------------------------------------------------------- the norms


@dataclass(frozen=True)
class View:
    """Which elements of an array share a mean, and which share a parameter.

    The array is seen in `shape` (group norm splits the channel axis); statistics reduce over `shared`; parameters lie
    along `parameters` and are flattened.
    """

    shape: tuple[int, ...]
    shared: tuple[int, ...]
    parameters: tuple[int, ...]

    def _order(self, last: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(a for a in range(len(self.shape)) if a not in last) + last

    def rows(self, values: Array) -> Array:
        """(statistics, elements that share them)."""
        m = math.prod(self.shape[a] for a in self.shared)
        ordered = values.reshape(self.shape).transpose(self._order(self.shared))
        return ordered.reshape(values.size // m if m else 0, m)

    def unrows(self, rows: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of `rows`."""
        order = self._order(self.shared)
        return rows.reshape([self.shape[a] for a in order]).transpose(np.argsort(order)).reshape(shape)

    def per_element(self, parameter: Array | None, default: float) -> Array:
        """A parameter repeated for each element, in rows."""
        sizes = [n if a in self.parameters else 1 for a, n in enumerate(self.shape)]
        values = np.full(1, default, np.float32) if parameter is None else parameter
        values = values.reshape(sizes) if parameter is not None else values
        return self.rows(np.broadcast_to(values, self.shape))

    def parameter_sums(self, rows: Any) -> Any:
        """Sums of a product in rows over everything that shares a parameter, in the parameter's flat order."""
        parts = [rows.hi, rows.lo] if isinstance(rows, Wide) else [rows]
        others = tuple(a for a in range(len(self.shape)) if a not in self.parameters)
        n = math.prod(self.shape[a] for a in others)
        order = self._order(others)
        parts = [self.unrows(p, self.shape).transpose(order).reshape(-1, n) for p in parts]
        return (Wide(*parts) if len(parts) == 2 else parts[0]).sum(axis=-1)


def view(norm: str, shape: tuple[int, ...], *, axis: int = 1, normalized: int = 1, groups: int = 1) -> View:
    """How `norm` ("batch", "layer", "rms", "instance", "group") cuts an array of this shape."""
    n, axis = len(shape), axis % max(len(shape), 1)
    if norm in ("layer", "rms"):
        trailing = tuple(range(n - normalized, n))
        return View(shape, trailing, trailing)
    if norm == "batch":
        return View(shape, tuple(a for a in range(n) if a != axis), (axis,))
    if norm == "instance":
        return View(shape, tuple(a for a in range(n) if a not in (0, axis)), (axis,))
    if norm == "group":
        split = (*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])
        return View(split, tuple(a for a in range(n + 1) if a not in (0, axis)), (axis, axis + 1))
    raise ValueError(norm)


@dataclass
class Forward:
    """Exact statistics (one per row of the view), y and the scale at which its error is measured."""

    mean: Array
    var: Array
    y: Array
    scale: Array


@dataclass
class Backward:
    """Exact gradients with their scales: for dx the sum of its terms' magnitudes, for a sum the root of its terms'
    squares."""

    dx: Array
    dx_scale: Array
    dweight: Array
    dweight_scale: Array
    dbias: Array
    dbias_scale: Array


def _standardise(v: View, x: Array, eps: float, centre: bool, mean: Array | None, var: Array | None) -> tuple[Any, ...]:
    """mean, variance, 1 / sqrt(var + eps) and xhat, in rows; a given mean and variance are constants."""
    rows = lift(v.rows(x))
    wide = isinstance(rows, Wide)
    if mean is not None and var is not None:
        mu = lift(v.per_element(mean, 0)[:, :1], wide)
        sigma2 = lift(v.per_element(var, 1)[:, :1], wide)
        d = rows - mu
    elif centre:
        raw = v.rows(x)
        c = lower(_mean(rows))
        d = rows - c
        rest = _mean(d)
        d, mu = d - rest, rest + c
        constant = (raw == raw[:, :1]).all(axis=1, keepdims=True)  # exactly, not to the last bit
        d, mu = _where(constant, d * LONG(0), d), _where(constant, lift(raw[:, :1], wide), mu)
        sigma2 = _mean(d * d)
    else:
        d, mu = rows, None
        sigma2 = _mean(d * d)
    rstd = lift(np.ones(1, np.float32), wide) / _root(sigma2 + LONG(eps))
    return mu, sigma2, rstd, d * rstd


def forward(
    v: View,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    *,
    centre: bool = True,
    mean: Array | None = None,
    var: Array | None = None,
    residual: Array | None = None,
    relu: bool = False,
) -> Forward:
    """y = gamma * xhat + beta (+ residual, then max(., 0)), exactly; centre=False is RMS norm."""
    mu, sigma2, _, xhat = _standardise(v, x, eps, centre, mean, var)
    wide = isinstance(xhat, Wide)
    scaled = xhat * lift(v.per_element(weight, 1), wide)
    beta = lift(v.per_element(bias, 0), wide)
    y = scaled + beta
    scale = np.abs(lower(scaled)) + np.abs(lower(beta))
    if residual is not None:
        added = lift(v.rows(residual), wide)
        y = y + added
        scale = scale + np.abs(lower(added))
    result = lower(y)
    result = np.where(result <= 0, LONG(0), result) if relu else result
    m = np.zeros(0, LONG) if mu is None else lower(mu).ravel()
    return Forward(m, lower(sigma2).ravel(), v.unrows(result, x.shape), v.unrows(scale, x.shape))


def backward(
    v: View,
    x: Array,
    dy: Array,
    weight: Array | None,
    eps: float,
    *,
    centre: bool = True,
    mean: Array | None = None,
    var: Array | None = None,
) -> Backward:
    """dx = rstd * (g - mean(g) - xhat * mean(g * xhat)), g = gamma * dy, exactly; given statistics, dx = rstd * g."""
    _, _, rstd, xhat = _standardise(v, x, eps, centre, mean, var)
    wide = isinstance(xhat, Wide)
    upstream = lift(v.rows(dy), wide)
    g = upstream * lift(v.per_element(weight, 1), wide)
    dx, scale = g, np.abs(lower(g))
    if mean is None:
        projected = xhat * _mean(g * xhat)
        dx, scale = dx - projected, scale + np.abs(lower(projected))
        if centre:
            dx, scale = dx - _mean(g), scale + np.abs(lower(_mean(g)))
    dx, scale = lower(dx * rstd), scale * lower(rstd)
    product = upstream * xhat
    sums = [v.parameter_sums(t) for t in (product, product * product, upstream, upstream * upstream)]
    dweight, dweight2, dbias, dbias2 = (lower(s) for s in sums)
    return Backward(
        v.unrows(dx, x.shape), v.unrows(scale, x.shape), dweight, np.sqrt(dweight2), dbias, np.sqrt(dbias2)
    )  # fmt: skip


def softmax_weights(logits: Array) -> list[Wide]:
    """softmax of a few logits, to 50 digits."""
    with localcontext() as context:
        context.prec = 50
        powers = [Decimal(float(v)).exp() for v in logits]
        return [Wide.parse(p / sum(powers)) for p in powers]


@dataclass
class Switchable:
    """Exact training-mode switchable norm and gradients, with the scales of their errors."""

    y: Array
    scale: Array
    dx: Array
    dx_scale: Array
    dmean_logits: Array
    dmean_scale: Array
    dvar_logits: Array
    dvar_scale: Array


def switchable(
    x: Array,
    dy: Array,
    mean_logits: Array,
    var_logits: Array,
    weight: Array | None,
    bias: Array | None,
    eps: float,
) -> Switchable:
    """Switchable norm of an (N, C, space) array from the batch's own statistics, all in `Wide`.

    The gradients are those of the chain rule through the nine moments, as the reference's docstring writes them.
    """
    n, c = x.shape[:2]
    rows = Wide(x.reshape(n, c, -1).astype(LONG))
    gamma = Wide((np.ones(c) if weight is None else weight).reshape(1, c, 1).astype(LONG))
    beta = (np.zeros(c) if bias is None else bias).reshape(1, c, 1).astype(LONG)
    m = rows.shape[-1]
    constant = (x.reshape(n, c, -1) == x.reshape(n, c, -1)[..., :1]).all(axis=-1, keepdims=True)
    mu_in = _where(constant, Wide(rows.hi[..., :1]), _mean(rows))
    var_in = _mean((rows - mu_in) * (rows - mu_in))

    def over(axis: int, values: Wide) -> Wide:
        """Sums over channels (1) or samples (0) of an (N, C, 1) array."""
        return values.sum(axis=axis, keepdims=True)

    def merge(axis: int) -> tuple[Wide, Wide]:
        count = LONG(x.shape[axis])
        mu = over(axis, mu_in) / count
        return mu, over(axis, var_in + (mu_in - mu) * (mu_in - mu)) / count

    (mu_ln, var_ln), (mu_bn, var_bn) = merge(1), merge(0)
    w, u = softmax_weights(mean_logits), softmax_weights(var_logits)
    mu = mu_in * w[0] + mu_ln * w[1] + mu_bn * w[2]
    var = var_in * u[0] + var_ln * u[1] + var_bn * u[2]
    rstd = Wide(1) / (var + LONG(eps)).sqrt()
    xhat = (rows - mu) * rstd
    y = xhat * gamma + beta
    scale = np.abs(lower(xhat * gamma)) + np.abs(beta)

    g = Wide(dy.reshape(n, c, -1).astype(LONG)) * gamma
    dmu = -(rstd * g.sum(keepdims=True))
    dvar = rstd * rstd * (g * xhat).sum(keepdims=True) * LONG(-0.5)
    dx = g * rstd
    dx_scale = np.abs(lower(dx))
    shares = ((mu_in, lambda s: s, m), (mu_ln, lambda s: over(1, s), m * c), (mu_bn, lambda s: over(0, s), m * n))
    for (centre, gather, count), w_k, u_k in zip(shares, w, u, strict=True):
        of_mean = gather(dmu) * w_k / LONG(count)
        of_var = gather(dvar) * u_k * (rows - centre) * LONG(2) / LONG(count)
        dx = dx + of_mean + of_var
        dx_scale = dx_scale + np.abs(lower(of_mean)) + np.abs(lower(of_var))

    noise_mu = lower(rstd) * np.sqrt(lower((g * g).sum(keepdims=True)))
    noise_var = 0.5 * lower(rstd * rstd) * np.sqrt(lower((g * g * xhat * xhat).sum(keepdims=True)))
    logits = []
    for weights, moments, mixed, upstream, noise in (
        (w, (mu_in, mu_ln, mu_bn), mu, dmu, noise_mu),
        (u, (var_in, var_ln, var_bn), var, dvar, noise_var),
    ):
        apart = [moment - mixed for moment in moments]
        sums = [upstream * d * w_k for d, w_k in zip(apart, weights, strict=True)]
        logits.append(np.array([lower(s).sum() for s in sums]))
        sizes = [(noise * np.abs(lower(d)) * lower(w_k)).sum() for d, w_k in zip(apart, weights, strict=True)]
        logits.append(np.array(sizes))
    shaped = (a.reshape(x.shape) for a in (lower(y), scale, lower(dx), dx_scale))
    return Switchable(*shaped, *logits)


@dataclass
class WeightNorm:
    """Exact weight norm of rows and gradients, with the scales of their errors."""

    w: Array
    dv: Array
    dv_scale: Array
    dg: Array
    dg_scale: Array


def weight_norm(v: Array, g: Array, dw: Array) -> WeightNorm:
    """w = g * v / ||v|| per row; dg = sum(dw * v) / ||v||; dv = g / ||v|| * (dw - dg * v / ||v||)."""
    rows, upstream = lift(v), lift(dw)
    wide = isinstance(rows, Wide)
    length = lift(g.reshape(-1, 1), wide)
    norm = _root((rows * rows).sum(axis=-1, keepdims=True))
    unit = rows / norm
    terms = upstream * unit
    dg = terms.sum(axis=-1, keepdims=True)
    factor = length / norm
    dv = (upstream - unit * dg) * factor
    scale = (np.abs(lower(upstream)) + np.abs(lower(unit * dg))) * np.abs(lower(factor))
    dg_scale = np.sqrt(lower((terms * terms).sum(axis=-1)))
    return WeightNorm(lower(unit * length), lower(dv), scale, lower(dg)[:, 0], dg_scale)


# ----------------------------------------------------------------------------------------------- data that broke others


@dataclass(frozen=True)
class Case:
    """Rows of values that share their statistics, what went wrong on them elsewhere, and where that was reported."""

    name: str
    went_wrong: str
    source: str
    build: Callable[[np.random.Generator], Array] = field(repr=False)
    eps: tuple[float, ...] = (1e-5,)

    def rows(self, dtype: Any) -> Array | None:
        """(R, m) in `dtype`, rounded from float64, or None if the values do not fit into it."""
        with np.errstate(over="ignore"):
            rows = self.build(np.random.default_rng(2024)).astype(dtype)
        return rows if np.isfinite(rows.astype(np.float64)).all() else None


def _steps(rng: np.random.Generator) -> Array:
    return np.stack([np.arange(16) * 1e-3 + mean for mean in (0, 100, 1000, 1e4)])


def _outlier(rng: np.random.Generator) -> Array:
    rows = rng.standard_normal((4, 4096))
    rows[:, 0] = [1e8, 1e8, -1e8, 1e8]
    return rows


CASES = (
    Case(
        "four_values_mean_2000", "output variance from 0.05 to 48425", "pytorch#51102",
        lambda rng: rng.standard_normal((64, 4)) + 2000,
    ),
    Case(
        "rows_of_32768_around_100", "variance computed as 0", "pytorch#40302",
        lambda rng: 0.01 * rng.standard_normal((4, 32768)) + 100,
    ),
    Case(
        "consecutive_integers_at_40000", "NaN; 4000 ULP", "onnxruntime#28463, tvm#19592",
        lambda rng: np.arange(4.0) + np.array([[40000.0], [80000.0]]),
    ),
    Case("constant_1234", "NaN", "onnxruntime#21935", lambda rng: np.full((2, 256), 1234.0)),
    Case(
        "mean_1449_small_spread", "NaN", "mlx#2238",
        lambda rng: 1449 + np.array([[1.0], [1e-2], [1e-3]]) * rng.standard_normal((3, 768)),
    ),
    Case("sixteen_steps", "errors of 1", "burn#5607", _steps),
    Case("constant_14", "1e-4 instead of 0", "pytorch#108072", lambda rng: np.full((2, 2), 14.0), (1e-6,)),
    Case(
        "constant_1e10", "+-1", "pytorch#5410",
        lambda rng: np.repeat([[1e10], [-3.3e9], [1.0000001e10]], 1000, axis=1), (1e-5, 1e-12),
    ),
    Case(
        "values_near_1e30", "zeros or NaN: the square overflows", "pytorch#178123",
        lambda rng: 1e30 * rng.standard_normal((4, 512)), (1e-5, 0.0),
    ),
    Case(
        "values_near_1e-30", "flushed, or eps ignored", "underflow of the square",
        lambda rng: 1e-30 * rng.standard_normal((4, 512)), (1e-5, 1e-12, 0.0),
    ),
    Case(
        "denormals_of_float32", "flushed, or eps ignored", "underflow of the square",
        lambda rng: 1e-40 * rng.standard_normal((4, 512)), (1e-5, 1e-12),
    ),
    Case("zeros_tiny_eps", "NaN: eps underflows in float16", "pytorch#41527", lambda rng: np.zeros((3, 64)), (1e-12,)),
    Case(
        "float16_square_overflows", "Inf", "pytorch#133085",
        lambda rng: rng.choice([-1, 1], (4, 512)) * rng.uniform(300, 65000, (4, 512)),
    ),
    Case(
        "base_1e5_spread_1e-2", "relative error 0.94 and 0.033", "onnxruntime#31973",
        lambda rng: 1e5 + 1e-2 * rng.standard_normal((4, 1024)), (1e-5, 1e-12),
    ),
    Case("first_element_1e8", "shifting by the first element loses everything", "shifted one-pass sums", _outlier),
    Case(
        "linear_ramp", "the centres of blocks drift", "blocked summation",
        lambda rng: np.linspace(0, 1e6, 10**6).reshape(1, -1),
    ),
    Case(
        "mean_1e3_std_1", "89 to 181 ULP", "measured on other packages",
        lambda rng: 1e3 + rng.standard_normal((4, 1000)),
    ),
    Case("mean_1e6_std_1", "1e5 ULP", "measured on other packages", lambda rng: 1e6 + rng.standard_normal((4, 1000))),
    Case(
        "float64_squares_overflow", "zeros or NaN: the square overflows", "pytorch#178123, in double precision",
        lambda rng: 1e200 * rng.standard_normal((4, 512)), (1e-5, 0.0),
    ),
    Case(
        "denormals_of_float64", "flushed, or eps ignored", "underflow of the square",
        lambda rng: 1e-310 * rng.standard_normal((4, 512)), (1e-5, 1e-12),
    ),
)  # fmt: skip
