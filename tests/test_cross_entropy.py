"""Cross-entropy: costs and gradients for every reduction, weighting, smoothing and shape of targets.

Method: the float64 reference for every combination, finite differences, extended precision for the accuracy of single
costs, and the formula (softmax - onehot) / n.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import exact
import numpy as np
import pytest
from support import (
    LENGTHS,
    Call,
    check_against_reference,
    check_slopes,
    compute_type,
    draw,
    dtype_of,
    every_dtype,
    same_bits,
    within,
)

import fastnorm as fn
from fastnorm import reference

REDUCTIONS = ("mean", "sum", "none")
SHAPES = [((6, 4), 1), ((2, 5, 3), 1), ((2, 3, 4, 5), -1), ((2, 5, 3, 4), 1), ((5,), 1), ((35, 19), 0), ((3, 1), 1)]


def problem(rng: np.random.Generator, shape: tuple[int, ...], axis: int, dtype: Any, **options: Any) -> Call:
    axis = 0 if len(shape) == 1 else axis
    rest = tuple(n for a, n in enumerate(shape) if a != axis % len(shape))
    targets = np.asarray(rng.integers(shape[axis], size=rest))
    arguments = {"logits": draw(rng, shape, dtype, 0, 3), "targets": targets}
    return Call("cross_entropy", arguments | options | ({"axis": axis} if len(shape) > 1 else {}))


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
def test_costs_and_gradients(
    shape: tuple[int, ...],
    axis: int,
    reduction: str,
    smoothing: float,
    weighted: bool,
    ignored: bool,
    rng: np.random.Generator,
) -> None:
    call = problem(rng, shape, axis, np.float64, reduction=reduction, label_smoothing=smoothing)
    axis = call.arguments.get("axis", 0)
    if weighted:
        call = call.replaced(weight=rng.uniform(0.2, 2, shape[axis]))
    if ignored and call.arguments["targets"].size > 1:
        call.arguments["targets"].flat[1] = -100
    check_against_reference(call, call.upstream(rng), 1e-12)
    check_slopes(call, {"logits": "dlogits"}, rng)


@every_dtype
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_storage_types(dtype: str, reduction: str, smoothing: float, rng: np.random.Generator) -> None:
    """The loss is in the compute type and the gradient in the logits', both close to float64's."""
    call = problem(rng, (35, 19), 1, dtype_of(dtype), reduction=reduction, label_smoothing=smoothing)
    wide = compute_type(call.x)
    weight = rng.uniform(0.2, 2, 19).astype(wide)
    call = call.replaced(weight=weight)
    dy = call.upstream(rng)
    loss, ctx = call.forward()
    dlogits = call.backward(dy, ctx).dlogits
    twin = call.replaced(logits=call.x.astype(np.float64), weight=weight.astype(np.float64))
    expected, context = reference.cross_entropy_forward(**twin.arguments)
    gradient = reference.cross_entropy_backward(np.asarray(dy, np.float64), context).dlogits
    assert np.asarray(loss).dtype == wide and dlogits.dtype == call.x.dtype
    tolerance = 8 * float(np.finfo(wide).eps)
    np.testing.assert_allclose(np.asarray(loss, np.float64), expected, tolerance, tolerance)
    storage = max(tolerance, 2.0 ** -exact.FORMATS[dtype][0])
    np.testing.assert_allclose(dlogits.astype(np.float64), gradient, storage, 8e-8 if dtype != "float64" else 1e-15)


@every_dtype
@pytest.mark.parametrize("n", [n for n in LENGTHS if n < 60000])
def test_single_costs_are_accurate(n: int, dtype: str, rng: np.random.Generator) -> None:
    """-log p within 4 ULP of itself, for classes likely and unlikely."""
    call = problem(rng, (7, n), 1, dtype_of(dtype), reduction="none")
    loss = call.plain()
    z = call.x.astype(exact.LONG)
    z = z - z.max(1, keepdims=True)
    expected = np.log(np.exp(z).sum(1)) - np.take_along_axis(z, call.arguments["targets"][:, None], 1)[:, 0]
    # A cost near 0 is the logarithm of a sum next to 1, which tells it to two ULP of 1.
    within(loss, expected, np.maximum(np.abs(expected), 0.5), 4, f"cost of {n} classes in {dtype}")


def test_gradient_is_softmax_minus_onehot_over_n(rng: np.random.Generator) -> None:
    call = problem(rng, (35, 19), 1, np.float64)
    _, ctx = call.forward()
    onehot = np.eye(19)[call.arguments["targets"]]
    dlogits = call.backward(np.float64(1), ctx).dlogits
    np.testing.assert_allclose(dlogits, (fn.softmax(call.x) - onehot) / 35, 1e-13, 1e-16)
    np.testing.assert_allclose(fn.cross_entropy_backward(1, ctx).dlogits, dlogits)
    np.testing.assert_allclose(fn.cross_entropy_backward(1.0, ctx).dlogits, dlogits)


@every_dtype
def test_masked_classes_have_no_gradient(dtype: str) -> None:
    """A logit of -Inf gets exactly 0, wherever the row's maximum lies and however large the loss's own gradient."""
    t = dtype_of(dtype)
    x = np.full((401, 5), -np.inf).astype(t)
    x[:, 0] = np.linspace(-20, 20, 401)
    x[::2, 3] = x[::2, 0]
    targets = np.zeros(401, int)
    for weight in (None, np.full(5, 0.3, compute_type(x))):
        _, ctx = fn.cross_entropy_forward(x, targets, weight, reduction="sum")
        for scale in (1.0, 100.0, 1e30):
            assert not fn.cross_entropy_backward(scale, ctx).dlogits[:, [1, 2, 4]].any(), f"scale {scale}"


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_targets_of_any_integer_type_and_memory(kind: Any, rng: np.random.Generator) -> None:
    call = problem(rng, (12, 19), 1, np.float32)
    targets = call.arguments["targets"]
    expected = call.plain()
    wide = np.zeros((12, 3), kind)
    wide[:, 1] = targets
    backwards = np.ascontiguousarray(targets.astype(kind)[::-1])[::-1]
    for variant in (targets.astype(kind), wide[:, 1], backwards):
        same_bits(call.replaced(targets=variant).plain(), expected)
    same_bits(call.replaced(targets=targets.astype(np.dtype(kind).newbyteorder("S"))).plain(), expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_target_ignored(reduction: str, rng: np.random.Generator) -> None:
    """No element counts: "mean" is NaN as in torch, the others 0, and no gradient flows."""
    call = problem(rng, (4, 3), 1, np.float32, reduction=reduction, ignore_index=2)
    call = call.replaced(targets=np.full(4, 2))
    loss, ctx = call.forward()
    assert np.isnan(loss) if reduction == "mean" else not np.any(loss)
    assert not call.backward(call.upstream(rng), ctx).dlogits.any()


def test_ignore_index_at_the_ends_of_the_types() -> None:
    """What int64 cannot hold is neither ignored by mistake nor taken for a class."""
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = fn.cross_entropy(x, np.array([0, 1, -100]))
    for kind, index in ((np.uint64, 2**64 - 1), (np.uint64, 2**63), (np.int64, -(2**63)), (np.int64, 2**63 - 1)):
        same_bits(fn.cross_entropy(x, np.array([0, 1, index], kind), ignore_index=index), expected)
    for kind, target, index in ((np.uint64, 2**64 - 100, -100), (np.int64, -100, 2**64 - 100), (np.int64, 4, 2**70)):
        with pytest.raises(ValueError, match=f"got {target} at index 2"):
            fn.cross_entropy(x, np.array([0, 1, target], kind), ignore_index=index)


@pytest.mark.parametrize("strange", [np.arange(5), np.ones((3, 1), int), 1.0, None, "1"], ids=repr)
def test_ignore_index_is_one_integer(strange: Any, rng: np.random.Generator) -> None:
    """An array was once compared with every target, and the kernel ran over as many rows as came of it."""
    call = problem(rng, (3, 7), 1, np.float32)
    with pytest.raises(TypeError, match="ignore_index"):
        call.replaced(ignore_index=strange).plain()


def test_the_first_target_out_of_range_is_named(rng: np.random.Generator) -> None:
    logits = draw(rng, (4, 3, 5), np.float32)
    targets = np.zeros((4, 5), np.int64)
    targets[1, 3], targets[2, 0] = 3, -1
    with pytest.raises(ValueError, match=r"targets.*\b3\b.*\(1, 3\)"):
        fn.cross_entropy(logits, targets)
    with pytest.raises(ValueError, match=r"targets.*-7.*\b2\b"):
        fn.cross_entropy(logits[:, :, 0], np.array([0, 1, -7, 3]))


def test_ignored_may_be_out_of_range(rng: np.random.Generator) -> None:
    logits = draw(rng, (4, 3), np.float32)
    for ignore in (-100, 7, 2**40):
        targets = np.array([0, ignore, 2, 1])
        kept = fn.cross_entropy(logits[[0, 2, 3]], targets[[0, 2, 3]])
        np.testing.assert_allclose(fn.cross_entropy(logits, targets, ignore_index=ignore), kept, 1e-6)


@pytest.mark.parametrize("shape", [(0, 5), (3, 5, 0)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing(shape: tuple[int, ...], reduction: str) -> None:
    logits, targets = np.zeros(shape, np.float32), np.zeros(shape[:1] + shape[2:], np.int64)
    loss, ctx = fn.cross_entropy_forward(logits, targets, reduction=reduction)
    assert np.isnan(loss) if reduction == "mean" else not np.any(loss)
    dy = np.zeros(targets.shape) if reduction == "none" else 1.0
    assert fn.cross_entropy_backward(dy, ctx).dlogits.shape == shape


def test_confident_rows(rng: np.random.Generator) -> None:
    """A certain and right class costs 0, a certain and wrong one the distance of the logits, however large."""
    logits = np.array([[1e4, 0, 0], [0, 1e4, 0], [0, -np.inf, 0]], np.float32)
    loss = fn.cross_entropy(logits, np.array([0, 0, 1]), reduction="none")
    np.testing.assert_array_equal(loss, np.array([0, 1e4, np.inf], np.float32))


def test_smoothing_mixes_with_the_uniform_distribution(rng: np.random.Generator) -> None:
    call = problem(rng, (35, 19), 1, np.float64)
    plain, smooth = call.plain(), call.plain(label_smoothing=0.2)
    uniform = -fn.log_softmax(call.x).mean()
    np.testing.assert_allclose(smooth, 0.8 * plain + 0.2 * uniform, 1e-13)


def test_totals_of_many_rows_and_classes_do_not_lose(rng: np.random.Generator) -> None:
    """Σ loss, Σ weight of the rows and of the classes: rounded as their exact sums are, on every version of Python."""
    weight = np.full(1000, 0.1)
    weight[0] = 1e12
    call = problem(rng, (3000, 1000), 1, np.float64, weight=weight)
    call.arguments["targets"][1:] = np.maximum(call.arguments["targets"][1:], 1)
    call.arguments["targets"][0] = 0
    each = call.plain(reduction="none")
    whole = math.fsum(weight[call.arguments["targets"]])
    np.testing.assert_allclose(call.plain(), math.fsum(each) / whole, 2.0**-52, 0)
    np.testing.assert_array_equal(call.plain(reduction="sum"), math.fsum(each))
    # dlogits = p·Σ weight·s/K - ..., so that the gradient of an unlikely class shows Σ weight of the classes.
    even = Call("cross_entropy", {"logits": np.zeros((1, 1000)), "targets": np.array([5]), "weight": weight})
    _, ctx = even.replaced(label_smoothing=1.0, reduction="sum").forward()
    got = fn.cross_entropy_backward(1.0, ctx).dlogits
    np.testing.assert_allclose(got[0, 1:], math.fsum(weight) * 1e-6 - 0.1 / 1000, 2e-16, 0)


@pytest.mark.parametrize("weight", [np.inf, np.nan])
def test_the_weight_of_a_class_that_no_target_has_does_not_matter(weight: float, rng: np.random.Generator) -> None:
    call = problem(rng, (6, 3), 1, np.float32, weight=np.array([1, weight, 2], np.float32))
    call.arguments["targets"][:] = [0, 2, 2, 0, 0, 2]
    one = call.replaced(weight=np.array([1, 1, 2], np.float32))
    (loss, ctx), (expected, same) = call.forward(), one.forward()
    same_bits(loss, expected)
    same_bits(call.backward(1.0, ctx).dlogits, one.backward(1.0, same).dlogits)


@pytest.mark.parametrize(("reduction", "smoothing"), [*itertools.product(REDUCTIONS, (0.0, 0.1))])
def test_bad_values_reach_their_row_alone(reduction: str, smoothing: float, rng: np.random.Generator) -> None:
    call = problem(rng, (6, 5), 1, np.float32, reduction=reduction, label_smoothing=smoothing)
    dy = call.upstream(rng)
    loss, ctx = call.forward()
    clean = call.backward(dy, ctx).dlogits
    bad = call.fresh()
    bad.x[2, 3] = np.nan
    loss_bad, ctx = bad.forward()
    dlogits = bad.backward(dy, ctx).dlogits
    others = np.arange(6) != 2
    same_bits(dlogits[others], clean[others])
    assert np.isnan(dlogits[2]).all()
    if reduction == "none":
        same_bits(loss_bad[others], loss[others])
        assert np.isnan(loss_bad[2])
    else:
        assert np.isnan(loss_bad)


@pytest.mark.parametrize("logit", [44.1, 532.1, 1e30, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_an_ignored_row_has_no_gradient_whatever_its_logits(dtype: type, logit: float) -> None:
    with np.errstate(over="ignore"):
        x = np.array([[0, logit, 1], [0, 1, 2]], dtype)
    _, ctx = fn.cross_entropy_forward(x, np.array([-100, 1]))
    compute = np.float64 if dtype is np.float64 else np.float32
    (dlogits,) = fn.cross_entropy_backward(compute(1), ctx)
    assert not dlogits[0].any() and np.isfinite(dlogits).all()
