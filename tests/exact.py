"""Exact values of the norms for the data as given, the measure of error, and the data that broke other implementations.

Method: the textbook formulas in a number type far wider than what is tested. float32 and half data are lifted to
`numpy.longdouble` (64-bit significand on x86), float64 data to `Wide`, an unevaluated sum of two doubles (106 bits), or
of two longdoubles where squares would leave the range of double.

Why that is exact enough: the rows are centred twice, d = (x - c) - mean(x - c) with c close to the mean. For 24-bit
data x - c is exact in 64 bits, so the centred values are wrong by 2^-64 of the *deviation*, times the log2(m) levels of
a pairwise sum, whatever the ratio of mean to deviation: less than 1e-10 ULP of float32. For float64 data the same holds
with 2^-104: less than 1e-14 ULP. Where longdouble is no wider than double, `Wide` serves every type.
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
    overflows = np.abs(exact) >= largest + spacing(largest, dtype) / 2
    exact = np.where(overflows, np.copysign(LONG(np.inf), exact), exact)
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


def _quick(s: Any, e: Any) -> tuple[Any, Any]:
    """The same for |s| >= |e|."""
    total = s + e
    return total, e - (total - s)


def _halves(a: Any) -> tuple[Any, Any]:
    bits = np.finfo(a.dtype).nmant + 1
    t = a * a.dtype.type(2.0 ** ((bits + 1) // 2) + 1)
    high = t - (t - a)
    return high, a - high


def _two_product(a: Any, b: Any) -> tuple[Any, Any]:
    p = a * b
    (ah, al), (bh, bl) = _halves(a), _halves(b)
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


class Wide:
    """An array of unevaluated sums hi + lo of doubles or longdoubles: Dekker's arithmetic, with twice their digits.

    Operators take another `Wide`, an array or a number, and return the type of the left operand.
    """

    __array_ufunc__ = None

    def __init__(self, hi: Any, lo: Any = None) -> None:
        self.hi = np.asarray(hi)
        self.lo = np.zeros_like(self.hi) if lo is None else np.asarray(lo, dtype=self.hi.dtype)

    @staticmethod
    def parse(value: Decimal) -> Wide:
        hi = LONG(str(value))
        top = float(hi)
        return Wide(hi, LONG(str(value - Decimal(top) - Decimal(float(hi - LONG(top))))))

    def like(self, other: Any) -> Wide:
        """`other` as sums of the same type as these."""
        base = self.hi.dtype
        if not isinstance(other, Wide):
            other = Wide(other)
        if other.hi.dtype == base:
            return other
        hi = other.hi.astype(base)
        return Wide(hi, ((other.hi - hi) + other.lo).astype(base))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.hi.shape

    def reshape(self, *shape: Any) -> Wide:
        return Wide(self.hi.reshape(*shape), self.lo.reshape(*shape))

    def __neg__(self) -> Wide:
        return Wide(-self.hi, -self.lo)

    def __add__(self, other: Any) -> Wide:
        other = self.like(other)
        s, e = _two_sum(self.hi, other.hi)
        t, f = _two_sum(self.lo, other.lo)
        s, e = _quick(s, e + t)
        return Wide(*_quick(s, e + f))

    def __sub__(self, other: Any) -> Wide:
        return self + (-self.like(other))

    def __mul__(self, other: Any) -> Wide:
        other = self.like(other)
        p, e = _two_product(self.hi, other.hi)
        return Wide(*_quick(p, e + (self.hi * other.lo + self.lo * other.hi)))

    def __truediv__(self, other: Any) -> Wide:
        other = self.like(other)
        q = self.hi / other.hi
        q, r = _quick(q, (self - other * q).hi / other.hi)
        return Wide(*_quick(q, r + (self - other * Wide(q, r)).hi / other.hi))

    def __abs__(self) -> Wide:
        sign = np.where(self.hi < 0, -1, 1).astype(self.hi.dtype)
        return Wide(self.hi * sign, self.lo * sign)

    def sqrt(self) -> Wide:
        """One Newton step from the root of hi, which doubles its digits."""
        root = np.sqrt(self.hi)
        rest = (self - Wide(root) * root).hi
        return Wide(*_quick(root, np.where(root > 0, rest / np.where(root > 0, 2 * root, 1), 0)))

    def sum(self, axis: int = -1, keepdims: bool = False) -> Wide:
        """Pairwise, along one axis."""
        hi, lo = np.moveaxis(self.hi, axis, -1), np.moveaxis(self.lo, axis, -1)
        if hi.shape[-1] == 0:
            hi = lo = np.zeros((*hi.shape[:-1], 1), hi.dtype)
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


def lift(values: Any) -> Any:
    """The values in a type in which the formulas are exact enough (the header says how exact)."""
    values = np.asarray(values)
    if values.dtype != np.float64 and LONG_BITS >= 64:
        return values.astype(LONG)
    size = float(np.abs(values).max(initial=0))
    return Wide(values.astype(np.float64 if size == 0 or 1e-70 < size < 1e70 else LONG))


def fit(values: Any, like: Any) -> Any:
    """Values of any kind in the type of `like`, so that they can be combined."""
    return like.like(values) if isinstance(like, Wide) else lower(values)


def lower(values: Any) -> Array:
    """Back to longdouble, rounded once."""
    return values.hi.astype(LONG) + values.lo if isinstance(values, Wide) else np.asarray(values).astype(LONG)


def _root(values: Any) -> Any:
    return values.sqrt() if isinstance(values, Wide) else np.sqrt(values)


def _where(condition: Array, one: Any, other: Any) -> Any:
    if isinstance(other, Wide):
        one = other.like(one)
        return Wide(np.where(condition, one.hi, other.hi), np.where(condition, one.lo, other.lo))
    return np.where(condition, one, other)


def _mean(values: Any) -> Any:
    return values.sum(axis=-1, keepdims=True) / LONG(max(values.shape[-1], 1))


def _size(values: Any) -> Array:
    return np.abs(lower(values))


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

    def per_element(self, parameter: Array) -> Array:
        """A parameter repeated for each element, in rows."""
        sizes = [n if a in self.parameters else 1 for a, n in enumerate(self.shape)]
        return self.rows(np.broadcast_to(parameter.reshape(sizes), self.shape))

    def parameter_sums(self, rows: Any) -> Array:
        """Sums of a product in rows over everything that shares a parameter, in the parameter's flat order."""
        parts = [rows.hi, rows.lo] if isinstance(rows, Wide) else [rows]
        others = tuple(a for a in range(len(self.shape)) if a not in self.parameters)
        n = math.prod(self.shape[a] for a in others)
        order = self._order(others)
        parts = [np.ascontiguousarray(self.unrows(p, self.shape).transpose(order).reshape(-1, n)) for p in parts]
        return lower((Wide(*parts) if len(parts) == 2 else parts[0]).sum(axis=-1))


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
class Standard:
    """Exact statistics and xhat, in the rows of a view and the type of the arithmetic; `own` if from the data
    itself."""

    mean: Any
    var: Any
    rstd: Any
    xhat: Any
    centred: bool
    own: bool


@dataclass
class Forward:
    """Exact statistics (one per row of the view), y, and the scale at which its error is measured."""

    mean: Array
    var: Array
    y: Array
    scale: Array


@dataclass
class Backward:
    """Exact gradients with scales: for dx the sum of its terms' magnitudes, for a sum the root of its terms'
    squares."""

    dx: Array
    dx_scale: Array
    dweight: Array
    dweight_scale: Array
    dbias: Array
    dbias_scale: Array


def standardise(
    v: View, x: Array, eps: float, *, centre: bool = True, mean: Array | None = None, var: Array | None = None
) -> Standard:
    """xhat = (x - mean) / sqrt(var + eps) exactly; centre=False is RMS norm; a given mean and variance are
    constants."""
    raw = v.rows(x)
    rows = lift(raw)
    own = mean is None or var is None
    if mean is not None and var is not None:
        mu, sigma2 = (fit(v.per_element(s)[:, :1], rows) for s in (mean, var))
        d = rows - mu
    elif centre:
        first = lower(_mean(rows))
        d = rows - first
        rest = _mean(d)
        constant = (raw == raw[:, :1]).all(axis=1, keepdims=True)  # exactly, not to the last bit
        d, mu = _where(constant, np.zeros(1), d - rest), _where(constant, raw[:, :1].astype(np.float64), rest + first)
        sigma2 = _mean(d * d)
    else:
        d, mu = rows, None
        sigma2 = _mean(d * d)
    rstd = fit(np.ones(1), rows) / _root(sigma2 + LONG(eps))
    return Standard(mu, sigma2, rstd, d * rstd, centre, own)


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
    known: Standard | None = None,
) -> Forward:
    """y = gamma * xhat + beta, exactly; `known` is what `standardise` gave for the same data."""
    s = known or standardise(v, x, eps, centre=centre, mean=mean, var=var)
    y = s.xhat if weight is None else s.xhat * fit(v.per_element(weight), s.xhat)
    scale = _size(y)
    if bias is not None:
        beta = v.per_element(bias)
        y, scale = y + fit(beta, y), scale + _size(beta)
    mu = np.zeros(0, LONG) if s.mean is None else lower(s.mean).ravel()
    return Forward(mu, lower(s.var).ravel(), v.unrows(lower(y), x.shape), v.unrows(scale, x.shape))


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
    known: Standard | None = None,
) -> Backward:
    """dx = rstd * (g - mean(g) - xhat * mean(g * xhat)), g = gamma * dy, exactly; given statistics, dx = rstd * g."""
    s = known or standardise(v, x, eps, centre=centre, mean=mean, var=var)
    upstream = fit(v.rows(dy), s.xhat)
    g = upstream if weight is None else upstream * fit(v.per_element(weight), s.xhat)
    dx, scale = g, _size(g)
    if s.own:
        projected = s.xhat * _mean(g * s.xhat)
        dx, scale = dx - projected, scale + _size(projected)
        if s.centred:
            dx, scale = dx - _mean(g), scale + _size(_mean(g))
    scale = scale * lower(s.rstd)
    product = upstream * s.xhat
    dweight, dbias = v.parameter_sums(product), v.parameter_sums(upstream)
    dweight_scale, dbias_scale = (np.sqrt(v.parameter_sums(_size(t) ** 2)) for t in (product, upstream))
    dx = v.unrows(lower(dx * s.rstd), x.shape)
    return Backward(dx, v.unrows(scale, x.shape), dweight, dweight_scale, dbias, dbias_scale)


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
    """Switchable norm of an (N, C, space) array from the batch's own statistics.

    The statistics, few, are `Wide`; what there is one of per element is in the type that `lift` gives. The gradients
    are those of the chain rule through the nine moments, as the reference's docstring writes them.
    """
    n, c = x.shape[:2]
    raw = x.reshape(n, c, -1)
    rows = lift(raw)
    m = raw.shape[-1]

    def statistic(values: Any) -> Wide:
        return values if isinstance(values, Wide) else Wide(values)

    def minus(mu: Wide) -> Any:
        """x - mu without rounding mu."""
        return rows - mu if isinstance(rows, Wide) else (rows - mu.hi) - mu.lo

    def over(axis: int, values: Wide) -> Wide:
        """Sums over channels (1) or samples (0) of an (N, C, 1) array."""
        return values.sum(axis=axis, keepdims=True)

    def merge(axis: int) -> tuple[Wide, Wide]:
        first = Wide(mu_in.hi.take([0], axis), mu_in.lo.take([0], axis))
        mu = first + over(axis, mu_in - first) / LONG(x.shape[axis])
        return mu, over(axis, var_in + (mu_in - mu) * (mu_in - mu)) / LONG(x.shape[axis])

    mu_in = statistic(_mean(rows))
    mu_in = mu_in + statistic(_mean(minus(mu_in)))
    mu_in = _where((raw == raw[..., :1]).all(axis=-1, keepdims=True), raw[..., :1].astype(np.float64), mu_in)
    d = minus(mu_in)
    var_in = statistic(_mean(d * d))
    (mu_ln, var_ln), (mu_bn, var_bn) = merge(1), merge(0)
    w, u = softmax_weights(mean_logits), softmax_weights(var_logits)
    mu = mu_in + (mu_ln - mu_in) * w[1] + (mu_bn - mu_in) * w[2]  # constant where all three are
    var = var_in * u[0] + var_ln * u[1] + var_bn * u[2]
    rstd = var.like(np.ones(1)) / (var + LONG(eps)).sqrt()
    inverse = fit(rstd, rows)
    xhat = minus(mu) * inverse
    y = xhat if weight is None else xhat * fit(weight.reshape(1, c, 1), rows)
    scale = _size(y)
    summed = isinstance(rows, Wide)
    if bias is not None:
        y, scale = y + fit(bias.reshape(1, c, 1), rows), scale + _size(bias.reshape(1, c, 1))

    g = fit(dy.reshape(n, c, -1), rows)
    g = g if weight is None else g * fit(weight.reshape(1, c, 1), rows)
    product = g * xhat
    dmu = -(rstd * statistic(g.sum(axis=-1, keepdims=True)))
    dvar = rstd * rstd * statistic(product.sum(axis=-1, keepdims=True)) * LONG(-0.5)
    dx = g * inverse
    dx_scale = _size(dx)

    def noise(terms: Any) -> Array:
        """How far roundings of the terms may carry their sum."""
        sizes = _size(terms)
        return sizes.sum(axis=-1, keepdims=True) if summed else np.sqrt((sizes**2).sum(axis=-1, keepdims=True))

    noise_mu = lower(rstd) * noise(g)
    noise_var = lower(rstd * rstd) * noise(product) / 2
    for k, (centre, count) in enumerate(((mu_in, m), (mu_ln, m * c), (mu_bn, m * n))):
        of_mean, of_var = (s if k == 0 else over(2 - k, s) for s in (dmu * w[k], dvar * u[k]))
        of_mean = fit(of_mean / LONG(count), rows)
        slope = minus(centre) * fit(of_var * LONG(2) / LONG(count), rows)
        dx = dx + of_mean + slope
        if summed:
            mean_size, var_size = (
                z if k == 0 else z.sum(axis=2 - k, keepdims=True)
                for z in (noise_mu * _size(w[k]), noise_var * _size(u[k]))
            )
            dx_scale = dx_scale + mean_size / count + _size(minus(centre)) * 2 * var_size / count
        else:
            dx_scale = dx_scale + _size(of_mean) + _size(slope)

    logits = []
    for weights, moments, mixed, upstream, rough in (
        (w, (mu_in, mu_ln, mu_bn), mu, dmu, noise_mu),
        (u, (var_in, var_ln, var_bn), var, dvar, noise_var),
    ):
        apart = [moment - mixed for moment in moments]
        logits.append(np.array([lower(upstream * d * w_k).sum() for d, w_k in zip(apart, weights, strict=True)]))
        sizes = [_size(m_k) + _size(mixed) for m_k in moments] if summed else [_size(d) for d in apart]
        logits.append(np.array([(rough * z * _size(w_k)).sum() for z, w_k in zip(sizes, weights, strict=True)]))
    shaped = (lower(a).reshape(x.shape) for a in (y, scale, dx, dx_scale))
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
    rows = lift(v)
    upstream, length = fit(dw, rows), fit(g.reshape(-1, 1), rows)
    norm = _root((rows * rows).sum(axis=-1, keepdims=True))
    unit = rows / norm
    terms = upstream * unit
    dg = terms.sum(axis=-1, keepdims=True)
    factor = length / norm
    dv = (upstream - unit * dg) * factor
    scale = (_size(upstream) + _size(unit * dg)) * _size(factor)
    dg_scale = np.sqrt((_size(terms) ** 2).sum(axis=-1))
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
)  # fmt: skip
