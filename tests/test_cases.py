"""The numeric cases that broke other packages: each a test, for every norm and storage type that it can apply to.

Promise kept: accuracy at any ratio of mean to deviation for which the data itself distinguishes its values. Forward
within 4 ULP at the scale |gamma * xhat| + |beta|, per element; dx within 8 ULP at the scale of its terms, rstd * (|g| +
|mean(g)| + |xhat * mean(g * xhat)|); the mean within 1 ULP at max(|mean|, std), the variance within 2. Half types: the
same for the float32 result, and one rounding. Sums over the batch (dweight, dbias, the gradients of logits and of g)
within 8 ULP at the root of their terms' squares. Exact values come from `exact.py`, from the data as given.

Each norm is run with parameters drawn at random and without any, so that the scale is also that of small outputs; dy is
drawn at random.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import exact
import numpy as np
import pytest

CASES = {case.name: case for case in exact.CASES}
NORMS = ("batch", "batch_columns", "layer", "rms", "instance", "group", "switchable")
STORAGE = ("float32", "float64", "float16", "bfloat16")


def function(name: str) -> Callable[..., Any]:
    """A function of the package, looked up when it is needed."""
    functional = importlib.import_module("fastnorm.functional")
    if not hasattr(functional, name):
        pytest.skip(f"fastnorm.functional.{name} does not exist yet")
    return getattr(functional, name)


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16) if name == "bfloat16" else np.dtype(name)


def applicable(name: str) -> list[str]:
    """The storage types that hold the case's values: no overflow, and not all rounded to zero."""
    size = np.abs(CASES[name].build(np.random.default_rng(0))).max()
    types = []
    for storage in STORAGE:
        bits, lowest = exact.FORMATS[storage]
        if size <= exact.LARGEST[storage] and (size == 0 or size >= 2.0 ** (lowest - bits)):
            types.append(storage)
    return types


def everywhere(name: str, norms: tuple[str, ...] = NORMS) -> Callable[[Any], Any]:
    """Run a test for each norm and each storage type that the case applies to."""

    def decorate(test: Any) -> Any:
        test = pytest.mark.parametrize("norm", norms)(test)
        return pytest.mark.parametrize("storage", applicable(name))(test)

    return decorate


def worst(actual: np.ndarray, expected: Any, scale: Any, bound: float, what: str) -> None:
    """Fail where the error is more than what is allowed, naming the worst element."""
    assert actual.shape == np.shape(expected), what
    ratio = exact.excess(actual, expected, scale, bound)
    if ratio.size and not ratio.max() <= 1:
        at = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
        pytest.fail(
            f"{what}: {float(ratio[at]) * bound:.3g} ULP where {bound} are allowed, at {tuple(map(int, at))}: "
            f"got {actual[at]!r}, exact {np.asarray(expected)[at]!r}, scale {np.asarray(scale)[at]!r}"
        )


def arrange(norm: str, rows: np.ndarray) -> np.ndarray:
    """An array in which each row of values shares its statistics under `norm`."""
    r, m = rows.shape
    if norm in ("layer", "rms"):
        return rows
    if norm == "batch_columns":
        return np.ascontiguousarray(rows.T)
    if norm == "batch":
        return np.ascontiguousarray(rows.reshape(r, 2, m // 2).transpose(1, 0, 2))
    if norm == "instance":
        return rows.reshape(1, r, m)
    if norm == "group":
        return rows.reshape(1, 2 * r, m // 2)
    return rows.reshape(r, 2, m // 2)  # switchable: a row is a sample, so its layer moments are the row's


def compute_type(x: np.ndarray) -> type[np.floating[Any]]:
    return np.float64 if x.dtype == np.float64 else np.float32


def parameters(norm: str, x: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[Any, Any]]:
    """Without parameters, and with random ones."""
    size = x.shape[-1] if norm in ("layer", "rms") else x.shape[1]
    weight, bias = rng.standard_normal((2, size)).astype(compute_type(x))
    yield None, None
    yield weight, None if norm == "rms" else bias


def run(
    norm: str, x: np.ndarray, groups: int, w: Any, b: Any, eps: float
) -> tuple[np.ndarray, Any, Callable[..., Any]]:
    """y, the context and the gradient function of a norm in training."""
    name = {"batch_columns": "batch"}.get(norm, norm) + "_norm"
    forward, backward = function(f"{name}_forward"), function(f"{name}_backward")
    arguments = {
        "batch_norm": lambda: (x, None, None, w, b, True, 0.1, eps),
        "layer_norm": lambda: (x, x.shape[-1], w, b, eps),
        "rms_norm": lambda: (x, x.shape[-1], w, eps),
        "instance_norm": lambda: (x, None, None, w, b, True, 0.1, eps),
        "group_norm": lambda: (x, groups, w, b, eps),
    }[name]()
    y, ctx = forward(*arguments)
    return y, ctx, backward


def check_norm(norm: str, rows: np.ndarray, eps: float, what: str) -> None:
    """Forward and backward of one norm over rows of values, against exact arithmetic."""
    rng = np.random.default_rng(7)
    x = arrange(norm, rows)
    dy = rng.standard_normal(x.shape).astype(x.dtype)
    if norm == "switchable":
        check_switchable(x, dy, eps, what, rng)
        return
    groups, centre = len(rows), norm != "rms"
    view = exact.view({"batch_columns": "batch"}.get(norm, norm), x.shape, groups=groups)
    known = exact.standardise(view, x, eps, centre=centre)
    for w, b in parameters(norm, x, rng):
        label = f"{what}, eps={eps}, {'affine' if w is not None else 'plain'}"
        y, ctx, backward = run(norm, x, groups, w, b, eps)
        f = exact.forward(view, x, w, b, eps, known=known)
        assert y.dtype == x.dtype
        worst(y, f.y, f.scale, 4, f"{label}: y")
        grads = backward(dy, ctx)
        g = exact.backward(view, x, dy, w, eps, known=known)
        worst(grads.dx, g.dx, g.dx_scale, 8, f"{label}: dx")
        if w is not None:
            assert grads.dweight.dtype == compute_type(x)
            worst(grads.dweight.ravel(), g.dweight, g.dweight_scale, 8, f"{label}: dweight")
            if b is not None:
                worst(grads.dbias.ravel(), g.dbias, g.dbias_scale, 8, f"{label}: dbias")


def check_switchable(x: np.ndarray, dy: np.ndarray, eps: float, what: str, rng: np.random.Generator) -> None:
    one, two = rng.standard_normal((2, 3)).astype(compute_type(x))
    for w, b in parameters("switchable", x, rng):
        label = f"{what}, eps={eps}, {'affine' if w is not None else 'plain'}"
        y, ctx = function("switchable_norm_forward")(x, one, two, None, None, w, b, True, 0.1, eps)
        grads = function("switchable_norm_backward")(dy, ctx)
        e = exact.switchable(x, dy, one, two, w, b, eps)
        worst(y, e.y, e.scale, 4, f"{label}: y")
        worst(grads.dx, e.dx, e.dx_scale, 8, f"{label}: dx")
        worst(grads.dmean_logits, e.dmean_logits, e.dmean_scale, 8, f"{label}: dmean_logits")
        worst(grads.dvar_logits, e.dvar_logits, e.dvar_scale, 8, f"{label}: dvar_logits")


def check_case(name: str, norm: str, storage: str) -> None:
    rows = CASES[name].rows(dtype_of(storage))
    assert rows is not None
    for eps in CASES[name].eps:
        check_norm(norm, rows, eps, f"{name}, {norm} norm in {storage}")


# ------------------------------------------------------------------------------------------ rows that lose their digits


@everywhere("four_values_mean_2000")
def test_four_values_mean_2000(norm: str, storage: str) -> None:
    """N = 4 values, mean 2000, std 1: output variance anywhere from 0.05 to 48425 (pytorch#51102)."""
    check_case("four_values_mean_2000", norm, storage)


@everywhere("rows_of_32768_around_100")
def test_rows_of_32768_around_100(norm: str, storage: str) -> None:
    """Rows of 32768 values 0.01 * randn + 100: variance computed as 0 (pytorch#40302)."""
    check_case("rows_of_32768_around_100", norm, storage)


@everywhere("consecutive_integers_at_40000")
def test_consecutive_integers_at_40000(norm: str, storage: str) -> None:
    """[40000, 40001, 40002, 40003] and from 80000: NaN (onnxruntime#28463); through BN, 4000 ULP (tvm#19592)."""
    check_case("consecutive_integers_at_40000", norm, storage)


@everywhere("mean_1449_small_spread")
def test_mean_1449_small_spread(norm: str, storage: str) -> None:
    """A row mean of about 1449 with a small spread: NaN (mlx#2238)."""
    check_case("mean_1449_small_spread", norm, storage)


@everywhere("sixteen_steps")
def test_sixteen_steps(norm: str, storage: str) -> None:
    """16 values in steps of 1e-3 around 0, 100, 1000 and 1e4: errors of 1 (burn#5607)."""
    check_case("sixteen_steps", norm, storage)


@everywhere("base_1e5_spread_1e-2")
def test_base_1e5_spread_1e_2(norm: str, storage: str) -> None:
    """1024 values at 1e5 with spread 1e-2: relative error 0.94 by Welford's method in float32 (onnxruntime#31973)."""
    check_case("base_1e5_spread_1e-2", norm, storage)


@everywhere("first_element_1e8")
def test_first_element_1e8(norm: str, storage: str) -> None:
    """The first element 1e8, the rest N(0, 1): methods that shift by the first element lose everything."""
    check_case("first_element_1e8", norm, storage)


@everywhere("linear_ramp")
def test_linear_ramp(norm: str, storage: str) -> None:
    """A linear ramp from 0 to 1e6 over 1e6 elements: the centres of blocks drift."""
    check_case("linear_ramp", norm, storage)


@everywhere("mean_1e3_std_1")
def test_mean_1e3_std_1(norm: str, storage: str) -> None:
    """Mean 1e3, std 1: 89 to 181 ULP in NumPy, JAX and PyTorch (measured)."""
    check_case("mean_1e3_std_1", norm, storage)


@everywhere("mean_1e6_std_1")
def test_mean_1e6_std_1(norm: str, storage: str) -> None:
    """Mean 1e6, std 1: more than 1e5 ULP in NumPy, JAX and PyTorch (measured)."""
    check_case("mean_1e6_std_1", norm, storage)


# -------------------------------------------------------------------------------------------------- overflow, underflow


@everywhere("values_near_1e30")
def test_values_near_1e30(norm: str, storage: str) -> None:
    """Values near 1e30, with eps and without: zeros or NaN, because the square overflows (pytorch#178123)."""
    check_case("values_near_1e30", norm, storage)


@everywhere("values_near_1e-30")
def test_values_near_1e_30(norm: str, storage: str) -> None:
    """Values near 1e-30, eps 1e-5, 1e-12 and 0: flushed, or eps ignored."""
    check_case("values_near_1e-30", norm, storage)


@everywhere("denormals_of_float32")
def test_denormals_of_float32(norm: str, storage: str) -> None:
    """Denormal float32 values: flushed, or eps ignored."""
    check_case("denormals_of_float32", norm, storage)


@everywhere("float16_square_overflows")
def test_float16_square_overflows(norm: str, storage: str) -> None:
    """Values whose square overflows float16, RMS norm above all: Inf (pytorch#133085)."""
    check_case("float16_square_overflows", norm, storage)


# -------------------------------------------------------------------------------------------------------- constant rows


def check_constant(name: str, norm: str, storage: str) -> None:
    """Within the bounds, and exactly beta wherever the mean is taken off."""
    check_case(name, norm, storage)
    if norm in ("rms", "switchable"):
        return
    rows = CASES[name].rows(dtype_of(storage))
    assert rows is not None
    x = arrange(norm, rows)
    for eps in CASES[name].eps:
        for w, b in parameters(norm, x, np.random.default_rng(8)):
            y, _, _ = run(norm, x, len(rows), w, b, eps)
            axis = -1 if norm == "layer" else 1
            beta = np.zeros(x.shape[axis]) if b is None else b
            shape = [n if a == axis % x.ndim else 1 for a, n in enumerate(x.shape)]
            np.testing.assert_array_equal(y, np.broadcast_to(beta.reshape(shape), x.shape).astype(x.dtype))


@everywhere("constant_1234")
def test_constant_1234(norm: str, storage: str) -> None:
    """256 times 1234: NaN (onnxruntime#21935)."""
    check_constant("constant_1234", norm, storage)


@everywhere("constant_14")
def test_constant_14(norm: str, storage: str) -> None:
    """[14, 14] with eps 1e-6: 1e-4 in place of 0 (pytorch#108072)."""
    check_constant("constant_14", norm, storage)


@everywhere("constant_1e10")
def test_constant_1e10(norm: str, storage: str) -> None:
    """Constant channels at 1e10: +-1 (pytorch#5410)."""
    check_constant("constant_1e10", norm, storage)


@everywhere("zeros_tiny_eps")
def test_zeros_tiny_eps(norm: str, storage: str) -> None:
    """Zeros with eps 1e-12: NaN in float16, because eps underflows (pytorch#41527)."""
    check_constant("zeros_tiny_eps", norm, storage)


# ---------------------------------------------------------------------------------------------- moments and weight norm


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("name", "storage"), [(name, storage) for name in CASES for storage in applicable(name)])
def test_moments_of_every_row(name: str, storage: str, axis: int) -> None:
    """Mean and variance of every row above, which lies along the last axis or, transposed, along the first."""
    rows = CASES[name].rows(dtype_of(storage))
    assert rows is not None
    e = exact.forward(exact.view("layer", rows.shape), rows, None, None, 1e-5)
    mean, var = function("moments")(rows if axis == 1 else np.ascontiguousarray(rows.T), axis=axis)
    assert mean.dtype == var.dtype == compute_type(rows)
    worst(mean, e.mean, np.maximum(np.abs(e.mean), np.sqrt(e.var)), 1, f"{name} in {storage}: mean")
    worst(var, e.var, e.var, 2, f"{name} in {storage}: variance")


WEIGHT_CASES = [
    (name, storage) for name, case in CASES.items() if name != "zeros_tiny_eps" for storage in applicable(name)
]


@pytest.mark.parametrize(("name", "storage"), WEIGHT_CASES)
def test_weight_norm_of_every_row(name: str, storage: str) -> None:
    """Every row above as a direction: its length is a root of squares, which overflow and underflow as variances do."""
    v = CASES[name].rows(dtype_of(storage))
    assert v is not None
    rng = np.random.default_rng(9)
    g = rng.standard_normal((len(v), 1)).astype(compute_type(v))
    dw = rng.standard_normal(v.shape).astype(v.dtype)
    w, ctx = function("weight_norm_forward")(v, g)
    grads = function("weight_norm_backward")(dw, ctx)
    e = exact.weight_norm(v, g, dw)
    worst(w, e.w, e.w, 4, f"{name} in {storage}: w")
    worst(grads.dv, e.dv, e.dv_scale, 8, f"{name} in {storage}: dv")
    worst(grads.dg.ravel(), e.dg, e.dg_scale, 8, f"{name} in {storage}: dg")


# --------------------------------------------------------------------------------------------------------- large arrays


def exact_moments(x: np.ndarray) -> tuple[Any, Any]:
    """Mean and variance of a long flat array, in longdouble around a first mean, a piece at a time."""
    centre = exact.LONG(np.mean([piece.mean(dtype=np.float64) for piece in np.array_split(x, 64)]))
    first = second = exact.LONG(0)
    for piece in np.array_split(x, 64):
        d = piece.astype(exact.LONG) - centre
        first, second = first + d.sum(), second + (d * d).sum()
    rest = first / x.size
    return centre + rest, second / x.size - rest * rest


def available_bytes() -> int:
    pages = os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in os.sysconf_names else 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def check_long_row(y: np.ndarray, x: np.ndarray, what: str) -> None:
    """A sample of one group's outputs, both ends included, against the exact moments of the whole group."""
    mean, var = exact_moments(x)
    at = np.r_[0:1000, 1000 : x.size : 9973, x.size - 1000 : x.size]
    expected = (x[at].astype(exact.LONG) - mean) / np.sqrt(var + exact.LONG(1e-5))
    worst(y[at], expected, np.abs(expected), 4, what)


def test_group_norm_of_a_volume() -> None:
    """GN over 1 x 32 x 256 x 256 x 72, 8 groups of 19 million values: devices differed by 0.012 (pytorch#54293)."""
    group_norm, fn = function("group_norm"), importlib.import_module("fastnorm")
    x = np.random.default_rng(10).standard_normal((1, 32, 256, 256, 72), dtype=np.float32)
    x += np.float32(3)
    before = fn.get_num_threads()
    y = group_norm(x, 8)
    for g in (0, 7):
        check_long_row(y.reshape(8, -1)[g], x.reshape(8, -1)[g], f"group {g}")
    try:
        fn.set_num_threads(1 if before > 1 else 2)
        assert np.array_equal(group_norm(x, 8, out=x), y)
    finally:
        fn.set_num_threads(before)


def test_layer_norm_of_75_million_values() -> None:
    """LN over one row of 1024 * 1024 * 72 elements: error 0.03 (pytorch#59987)."""
    x = np.random.default_rng(11).standard_normal((1, 1024 * 1024 * 72), dtype=np.float32)
    x += np.float32(1)
    check_long_row(function("layer_norm")(x, x.shape[1])[0], x[0], "one long row")


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("norm", ["batch", "layer", "rms", "instance", "group", "switchable"])
def test_more_rows_than_16_bits_count(norm: str, storage: str) -> None:
    """2^16 + 3 rows, samples or channels: a silently unwritten tail (onnxruntime#32299, apex#411)."""
    rng = np.random.default_rng(12)
    rows = (rng.standard_normal((2**16 + 3, 4)) + 5).astype(dtype_of(storage))
    if norm == "switchable":
        x = rows[: 2**16 + 1].reshape(-1, 2, 2)
        dy = rng.standard_normal(x.shape).astype(x.dtype)
        check_switchable(x, dy, 1e-5, f"many samples in {storage}", rng)
        return
    check_norm(norm, rows, 1e-5, f"many rows, {norm} norm in {storage}")
    if norm in ("instance", "group"):
        x = rows.reshape(-1, 1, 4)
        y, _, _ = run(norm, x, 1, None, None, 1e-5)
        f = exact.forward(exact.view(norm, x.shape), x, None, None, 1e-5)
        worst(y, f.y, f.scale, 4, f"many samples, {norm} norm in {storage}")


def test_more_than_2_to_the_31_elements() -> None:
    """2^31 elements and one row more, in place: a silently unwritten tail (onnxruntime#32299, apex#411)."""
    layer_norm, batch_norm = function("layer_norm"), function("batch_norm")
    n, d = 2**20 + 1, 2048
    if available_bytes() < 3 * n * d:
        pytest.skip("needs 6.4 GB of free memory")
    pattern = np.random.default_rng(13).standard_normal((64, d)).astype(np.float16)
    x = np.empty((n, d), np.float16)
    x[:-1].reshape(-1, 64, d)[...] = pattern
    x[-1] = pattern[0]

    def check(y: np.ndarray, expected: exact.Forward) -> None:
        assert y is x
        worst(y[:64], expected.y, expected.scale, 4, "the first rows")
        assert y[-1].tobytes() == y[0].tobytes(), "the row beyond 2^31"
        first = y[:64].view(np.uint16)
        for start in range(0, n - 1, 2**14):
            assert (y[start : start + 2**14].view(np.uint16).reshape(-1, 64, d) == first).all(), start

    check(layer_norm(x, d, out=x), exact.forward(exact.view("layer", pattern.shape), pattern, None, None, 1e-5))
    pattern = x[:64].copy()
    mean, var = (np.linspace(a, b, d, dtype=np.float32) for a, b in ((-1, 1), (0.5, 2)))
    expected = exact.forward(exact.view("batch", pattern.shape), pattern, None, None, 1e-5, mean=mean, var=var)
    check(batch_norm(x, mean, var, out=x), expected)


# ------------------------------------------------------------------------------------------------------ Inf, NaN, empty


@pytest.mark.parametrize("bad", ["inf", "-inf", "nan", "largest"])
@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("norm", ["batch", "batch_columns", "layer", "rms", "instance", "group"])
def test_one_bad_value_reaches_its_group_alone(norm: str, storage: str, bad: str) -> None:
    """One Inf or NaN in one group: masked to 0, or spread to the whole batch (pytorch#173989).

    All outputs that share the value's statistics are NaN; RMS norm of an infinity is 0 elsewhere, as its formula says.
    All others have the bits that they have without it, forward and backward; so they have beside the largest finite
    number.
    """
    rng = np.random.default_rng(14)
    rows = rng.standard_normal((5, 34)).astype(dtype_of(storage))
    broken = rows.copy()
    broken[2, 17] = exact.LARGEST[storage] if bad == "largest" else float(bad)
    clean, x = arrange(norm, rows), arrange(norm, broken)
    dy = rng.standard_normal(x.shape).astype(x.dtype)
    view = exact.view({"batch_columns": "batch"}.get(norm, norm), x.shape, groups=5)
    for w, b in parameters(norm, x, rng):
        y, ctx, backward = run(norm, x, 5, w, b, 1e-5)
        z, other, _ = run(norm, clean, 5, w, b, 1e-5)
        pairs = [(y, z), (backward(dy, ctx).dx, backward(dy, other).dx)]
        for index, (with_bad, without) in enumerate(pairs):
            ours, theirs = (view.rows(a).astype(np.float64) for a in (with_bad, without))
            keep = np.arange(5) != 2
            assert ours[keep].tobytes() == theirs[keep].tobytes()
            if bad == "largest":
                continue
            if norm == "rms" and bad != "nan":
                assert np.isnan(ours[2, 17])
                assert index or (np.delete(ours[2], 17) == 0).all()
            else:
                assert np.isnan(ours[2]).all()


@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize("storage", STORAGE)
def test_one_bad_value_in_switchable_norm(storage: str, bad: float) -> None:
    """It reaches its sample (through the layer moments) and its channel (through the batch's), and nothing else
    (pytorch#173989)."""
    rng = np.random.default_rng(15)
    clean = rng.standard_normal((3, 4, 9)).astype(dtype_of(storage))
    x = clean.copy()
    x[1, 2, 5] = bad
    one, two = rng.standard_normal((2, 3)).astype(compute_type(x))
    f = function("switchable_norm")
    y, z = (f(a, one, two, training=True).astype(np.float64) for a in (x, clean))
    reached = np.zeros((3, 4), bool)
    reached[1], reached[:, 2] = True, True
    assert np.isnan(y[reached]).all()
    assert y[~reached].tobytes() == z[~reached].tobytes()


@pytest.mark.parametrize("storage", ["float32", "float64"])
@pytest.mark.parametrize("norm", ["batch", "instance", "switchable"])
def test_an_empty_batch_and_a_last_batch_of_one(norm: str, storage: str) -> None:
    """A batch of 0, a last batch of 1: running statistics become NaN (pytorch#12013, #36530, #4534)."""
    mean, var = np.full(3, 2, storage), np.full(3, 5, storage)
    f = function(f"{norm}_norm")
    first = (np.zeros(3, storage),) * 2 if norm == "switchable" else ()

    def call(x: np.ndarray) -> np.ndarray:
        return f(x, *first, mean, var, None, None, True)

    for shape in ((0, 3, 4), (4, 3, 0)):
        assert call(np.zeros(shape, storage)).shape == shape
        assert (mean == 2).all() and (var == 5).all()
    with pytest.raises(ValueError, match=r"1, 3"):
        call(np.ones((1, 3), storage))
    assert (mean == 2).all() and (var == 5).all()
    x = np.random.default_rng(16).standard_normal((1, 3, 7)).astype(storage)
    assert np.isfinite(call(x)).all()
    np.testing.assert_allclose(mean, 1.8 + 0.1 * x[0].mean(axis=1), 1e-5)
    np.testing.assert_allclose(var, 4.5 + 0.1 * x[0].var(axis=1, ddof=1), 1e-5)


# ------------------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("storage", ["float32", "float64"])
@pytest.mark.parametrize("norm", ["batch", "batch_columns", "layer", "instance", "group"])
def test_an_upstream_gradient_of_ones_vanishes_and_a_random_one_does_not(norm: str, storage: str) -> None:
    """dy of ones gives dx = 0 whatever the formula in between: a check that uses it proves nothing, so dy is random."""
    rng = np.random.default_rng(17)
    rows = (rng.standard_normal((4, 64)) * 3 + 7).astype(storage)
    x = arrange(norm, rows)
    _, ctx, backward = run(norm, x, 4, None, None, 1e-5)
    assert np.abs(backward(np.ones_like(x), ctx).dx).max() <= 8 * np.spacing(np.dtype(storage).type(1))
    assert np.abs(backward(rng.standard_normal(x.shape).astype(storage), ctx).dx).min() > 0


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("shape", [(40, 3), (5, 3, 17), (2, 3, 5, 7)])
def test_evaluation_mode_backward(shape: tuple[int, ...], storage: str) -> None:
    """With running statistics dx = gamma * rstd * dy; the training formula was used by mistake (pytorch#586)."""
    rng = np.random.default_rng(18)
    x, dy = (rng.standard_normal((2, *shape)) * 2 + 1).astype(dtype_of(storage))
    kind = compute_type(x)
    w, b, mean = rng.standard_normal((3, 3)).astype(kind)
    var = rng.uniform(0.5, 2, 3).astype(kind)
    calls = {
        "batch_norm": lambda f: f(x, mean, var, w, b, False),
        "instance_norm": lambda f: f(x, mean, var, w, b, False),
    }
    view = exact.view("batch", shape)
    f = exact.forward(view, x, w, b, 1e-5, mean=mean, var=var)
    g = exact.backward(view, x, dy, w, 1e-5, mean=mean, var=var)
    for name, call in calls.items():
        y, ctx = call(function(f"{name}_forward"))
        grads = function(f"{name}_backward")(dy, ctx)
        worst(y, f.y, f.scale, 4, f"{name}: y")
        worst(grads.dx, g.dx, g.dx_scale, 8, f"{name}: dx")
        worst(grads.dweight, g.dweight, g.dweight_scale, 8, f"{name}: dweight")
        worst(grads.dbias, g.dbias, g.dbias_scale, 8, f"{name}: dbias")


# ------------------------------------------------------------------------------------------------------ memory, threads


@pytest.mark.parametrize("norm", ["batch", "layer", "rms", "instance", "group", "switchable"])
def test_out_with_other_strides(norm: str) -> None:
    """`out` laid out otherwise than x: written to the wrong places (pytorch#75923). Right, or refused and untouched."""
    rng = np.random.default_rng(19)
    x = rng.standard_normal((4, 6, 5, 8)).astype(np.float32)
    logits = np.zeros(3, np.float32)
    plain = function(f"{norm}_norm")
    call: Callable[[Any], np.ndarray] = {
        "batch": lambda out: plain(x, training=True, out=out),
        "layer": lambda out: plain(x, 8, out=out),
        "rms": lambda out: plain(x, 8, out=out),
        "instance": lambda out: plain(x, out=out),
        "group": lambda out: plain(x, 3, out=out),
        "switchable": lambda out: plain(x, logits, logits, training=True, out=out),
    }[norm]
    expected = call(None)
    bases = {
        "channels last": lambda: (base := np.full((4, 5, 8, 6), 7, np.float32), base.transpose(0, 3, 1, 2)),
        "transposed": lambda: (base := np.full((8, 5, 6, 4), 7, np.float32), base.T),
        "every other": lambda: (base := np.full((4, 6, 5, 16), 7, np.float32), base[..., ::2]),
        "backwards": lambda: (base := np.full((4, 6, 5, 8), 7, np.float32), base[::-1]),
        "a slice": lambda: (base := np.full((4, 9, 5, 8), 7, np.float32), base[:, 2:8]),
    }
    for layout, make in bases.items():
        base, out = make()
        try:
            assert call(out) is out
        except ValueError as error:
            assert "out" in str(error), layout
        else:
            np.testing.assert_allclose(out, expected, 1e-5, 1e-6, err_msg=layout)
            out[...] = 7
        assert (base == 7).all(), f"{layout}: written outside of out"


@pytest.mark.parametrize("threads", [2, 7])
@pytest.mark.parametrize("norm", ["batch", "batch_columns", "layer", "rms", "instance", "group"])
def test_fewer_channels_or_rows_than_threads(norm: str, threads: int) -> None:
    """One to three channels or rows on more threads: statistics of idle threads counted (pytorch#113619)."""
    fn = importlib.import_module("fastnorm")
    rng = np.random.default_rng(20)
    before = fn.get_num_threads()
    for r, m in ((1, 2), (1, 100_000), (2, 30_000), (3, 64), (6, 6)):
        rows = (rng.standard_normal((r, m)) + 2).astype(np.float32)
        x = arrange(norm, rows)
        dy = rng.standard_normal(x.shape).astype(np.float32)
        w, b = list(parameters(norm, x, rng))[1]
        results = []
        try:
            for count in (1, threads):
                fn.set_num_threads(count)
                y, ctx, backward = run(norm, x, r, w, b, 1e-5)
                results.append([y, *(a for a in backward(dy, ctx) if a is not None)])
                check_norm(norm, rows, 1e-5, f"{r} rows of {m} on {count} threads, {norm} norm")
        finally:
            fn.set_num_threads(before)
        for one, many in zip(*results, strict=True):
            assert one.tobytes() == many.tobytes()
