"""The reference keeps what it teaches: its gradients are the derivatives of its values, and theory's identities hold.

Method: central differences in float64 along random directions, for every argument that has a gradient; the identities
that relate the norms to each other; agreement with torch where it is installed; the edges of the contract. dy is always
drawn at random, because a dy of ones is annihilated by every norm's gradient.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import exact
import numpy as np
import pytest

from fastnorm import reference as ref
from fastnorm.reference import regularization

ALL = [name for name in ref.__all__ if name.islower() and not name.endswith(("_forward", "_backward"))]
FLOATS = ("float32", "float64")
HALVES = ("float16", "bfloat16")


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16) if name == "bfloat16" else np.dtype(name)


def close(actual: Any, expected: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(np.asarray(actual, np.float64), np.asarray(expected, np.float64), tolerance, tolerance)


# ----------------------------------------------------------------------------------------------------------- gradients


def check_gradients(
    run: Callable[..., tuple[Any, Any]],
    back: Callable[..., Any],
    arguments: dict[str, np.ndarray],
    fields: dict[str, str],
    rng: np.random.Generator,
) -> None:
    """d/dt sum(dy * f(a + t * u)) = sum(u * da), for each named argument a, a random direction u and a random dy."""
    y, ctx = run(**arguments)
    dy = rng.standard_normal(np.shape(y))
    grads = back(dy, ctx)
    for name, given in fields.items():
        gradient = getattr(grads, given)
        value = arguments[name]
        assert gradient.shape == value.shape and gradient.dtype == value.dtype
        u = rng.standard_normal(value.shape)
        t = 1e-5 * max(1.0, float(np.abs(value).max(initial=0)))
        ends = [float((dy * run(**{**arguments, name: value + s * t * u})[0]).sum()) for s in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * t)
        exact_slope = float((u * gradient).sum())
        rounding = 1e-10 * float(np.abs(dy * y).sum() + np.abs(dy).sum())
        assert abs(slope - exact_slope) <= 1e-7 * float(np.abs(u * gradient).sum()) + rounding, name


AFFINE = {"x": "dx", "weight": "dweight", "bias": "dbias"}
CHANNEL_SHAPES = [
    ((5, 3), 1),
    ((4, 6, 7), 1),
    ((3, 4, 5, 2), 1),
    ((3, 5, 2, 4), -1),
    ((2, 2, 3, 2, 3), 1),
    ((2, 1, 3), 1),
]


def affine_arguments(rng: np.random.Generator, shape: tuple[int, ...], parameters: tuple[int, ...]) -> dict[str, Any]:
    return {
        "x": rng.standard_normal(shape) + 2,
        "weight": rng.standard_normal(parameters),
        "bias": rng.standard_normal(parameters),
    }


@pytest.mark.parametrize(("shape", "axis"), CHANNEL_SHAPES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tail", ["plain", "relu", "residual", "residual_relu"])
def test_batch_norm_gradients(shape: tuple[int, ...], axis: int, training: bool, tail: str) -> None:
    rng = np.random.default_rng(1)
    c = shape[axis]
    arguments = affine_arguments(rng, shape, (c,))
    mean, var = rng.standard_normal(c), rng.uniform(0.5, 2, c)
    fields = dict(AFFINE)
    if "residual" in tail:
        arguments["residual"] = rng.standard_normal(shape)
        fields["residual"] = "dresidual"

    def run(x: Any, **rest: Any) -> Any:
        return ref.batch_norm_forward(
            x,
            mean.copy(),
            var.copy(),
            training=training,
            axis=axis,
            activation="relu" if "relu" in tail else None,
            **rest,
        )

    check_gradients(run, ref.batch_norm_backward, arguments, fields, rng)


@pytest.mark.parametrize(
    ("shape", "normalized"), [((7,), 7), ((4, 5), (5,)), ((3, 4, 5), (4, 5)), ((2, 3, 1), 1), ((3, 13), 13)]
)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_trailing_norm_gradients(norm: str, shape: tuple[int, ...], normalized: Any, residual: bool) -> None:
    rng = np.random.default_rng(2)
    trailing = normalized if isinstance(normalized, tuple) else (normalized,)
    arguments = affine_arguments(rng, shape, trailing)
    fields = dict(AFFINE)
    if norm == "rms":
        del arguments["bias"], fields["bias"]
    if residual:
        arguments["residual"] = rng.standard_normal(shape)
        fields["residual"] = "dresidual"
    forward, backward = getattr(ref, f"{norm}_norm_forward"), getattr(ref, f"{norm}_norm_backward")
    check_gradients(lambda x, **rest: forward(x, normalized, **rest), backward, arguments, fields, rng)


@pytest.mark.parametrize(("shape", "axis"), CHANNEL_SHAPES)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_group_norm_gradients(shape: tuple[int, ...], axis: int, activation: Any) -> None:
    rng = np.random.default_rng(3)
    c = shape[axis]
    for groups in (g for g in range(1, c + 1) if c % g == 0):
        check_gradients(
            lambda x, g=groups, **rest: ref.group_norm_forward(x, g, axis=axis, activation=activation, **rest),
            ref.group_norm_backward, affine_arguments(rng, shape, (c,)), AFFINE, rng,
        )  # fmt: skip


@pytest.mark.parametrize(("shape", "axis"), CHANNEL_SHAPES[1:])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_instance_norm_gradients(shape: tuple[int, ...], axis: int, own: bool, activation: Any) -> None:
    rng = np.random.default_rng(4)
    c = shape[axis]
    mean, var = rng.standard_normal(c), rng.uniform(0.5, 2, c)
    check_gradients(
        lambda x, **rest: ref.instance_norm_forward(
            x, mean.copy(), var.copy(), use_input_stats=own, axis=axis, activation=activation, **rest
        ),
        ref.instance_norm_backward, affine_arguments(rng, shape, (c,)), AFFINE, rng,
    )  # fmt: skip


@pytest.mark.parametrize(("shape", "axis"), CHANNEL_SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_switchable_norm_gradients(shape: tuple[int, ...], axis: int, training: bool) -> None:
    rng = np.random.default_rng(5)
    c = shape[axis]
    mean, var = rng.standard_normal(c), rng.uniform(0.5, 2, c)
    arguments = affine_arguments(rng, shape, (c,))
    arguments |= {"mean_logits": rng.standard_normal(3), "var_logits": rng.standard_normal(3)}
    fields = AFFINE | {"mean_logits": "dmean_logits", "var_logits": "dvar_logits"}
    check_gradients(
        lambda x, **rest: ref.switchable_norm_forward(
            x, running_mean=mean.copy(), running_var=var.copy(), training=training, axis=axis, **rest
        ),
        ref.switchable_norm_backward, arguments, fields, rng,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "dim"), [((4, 5), 0), ((4, 5), 1), ((3, 4, 2, 2), -1), ((3, 4, 2), None), ((6,), 0), ((1, 3), 0)]
)
@pytest.mark.parametrize("flat", [False, True])
def test_weight_norm_gradients(shape: tuple[int, ...], dim: int | None, flat: bool) -> None:
    rng = np.random.default_rng(6)
    kept = () if dim is None else (dim % len(shape),)
    wide = tuple(n if i in kept else 1 for i, n in enumerate(shape))
    arguments = {
        "v": rng.standard_normal(shape),
        "g": np.asarray(rng.standard_normal(tuple(shape[i] for i in kept) if flat else wide)),
    }
    check_gradients(
        lambda v, g: ref.weight_norm_forward(v, np.asarray(g), dim),
        ref.weight_norm_backward,
        arguments,
        {"v": "dv", "g": "dg"},
        rng,
    )


@pytest.mark.parametrize(("shape", "axis"), [((7,), 0), ((4, 5), -1), ((4, 5), 0), ((3, 4, 5), 1), ((3, 1), 1)])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_gradients(name: str, shape: tuple[int, ...], axis: int) -> None:
    rng = np.random.default_rng(7)
    forward, backward = getattr(ref, f"{name}_forward"), getattr(ref, f"{name}_backward")
    check_gradients(lambda x: forward(x, axis), backward, {"x": rng.standard_normal(shape)}, {"x": "dx"}, rng)


@pytest.mark.parametrize(("shape", "axis"), [((5,), 1), ((6, 4), 1), ((2, 5, 3), 1), ((2, 3, 4, 5), -1)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_gradients(
    shape: tuple[int, ...], axis: int, reduction: Any, smoothing: float, weighted: bool
) -> None:
    rng = np.random.default_rng(8)
    axis = 0 if len(shape) == 1 else axis % len(shape)
    classes = shape[axis]
    targets = rng.integers(0, classes, shape[:axis] + shape[axis + 1 :])
    weight = rng.uniform(0.1, 2, classes) if weighted else None
    ignored = 1 if targets.ndim else -100
    if targets.ndim:
        targets.flat[0] = 0
    check_gradients(
        lambda logits: ref.cross_entropy_forward(logits, targets, weight, ignored, reduction, smoothing, axis=axis),
        ref.cross_entropy_backward, {"logits": rng.standard_normal(shape)}, {"logits": "dlogits"}, rng,
    )  # fmt: skip


def test_cross_entropy_gradient_is_softmax_minus_onehot() -> None:
    rng = np.random.default_rng(9)
    logits, targets = rng.standard_normal((6, 4)), rng.integers(0, 4, 6)
    _, ctx = ref.cross_entropy_forward(logits, targets)
    close(ref.cross_entropy_backward(1.0, ctx).dlogits, (ref.softmax(logits) - np.eye(4)[targets]) / 6)


def test_dropout_gradient_is_the_mask() -> None:
    rng = np.random.default_rng(10)
    x, dy = rng.standard_normal((2, 5, 7, 3))
    y, ctx = ref.dropout_forward(x, 0.3, seed=5)
    dx = ref.dropout_backward(dy, ctx).dx
    np.testing.assert_array_equal(dx, np.where(y != 0, dy * (1 / 0.7), 0))
    y, ctx = ref.dropout_forward(x, 0.3, training=False)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(ref.dropout_backward(dy, ctx).dx, dy)


# ----------------------------------------------------------------------------------------------------------- identities


def test_batch_norm_ignores_the_scale_and_bias_of_the_weights_before_it() -> None:
    """BN(a W u + b) = BN(W u), and the gradient with respect to W shrinks by 1 / a (eps = 0 makes it exact)."""
    rng = np.random.default_rng(11)
    u, w, dy = rng.standard_normal((64, 10)), rng.standard_normal((10, 6)), rng.standard_normal((64, 6))
    grads = []
    for a, b in ((1.0, 0.0), (8.0, 3.0)):
        y, ctx = ref.batch_norm_forward(u @ (a * w) + b, training=True, eps=0.0)
        grads.append((y, u.T @ ref.batch_norm_backward(dy, ctx).dx))
    close(grads[1][0], grads[0][0], 1e-12)
    close(grads[1][1], grads[0][1] / 8, 1e-12)


def test_instance_norm_is_group_norm_with_one_channel_per_group() -> None:
    rng = np.random.default_rng(12)
    x, dy = rng.standard_normal((2, 3, 4, 5, 2))
    w, b = rng.standard_normal((2, 4))
    y, ctx = ref.instance_norm_forward(x, weight=w, bias=b)
    z, other = ref.group_norm_forward(x, 4, w, b)
    close(y, z)
    for one, two in zip(ref.instance_norm_backward(dy, ctx), ref.group_norm_backward(dy, other), strict=True):
        close(one, two)


def test_layer_norm_over_all_but_the_samples_is_group_norm_with_one_group() -> None:
    rng = np.random.default_rng(13)
    x, dy = rng.standard_normal((2, 3, 4, 5, 2))
    y, ctx = ref.layer_norm_forward(x, (4, 5, 2))
    z, other = ref.group_norm_forward(x, 1)
    close(y, z)
    close(ref.layer_norm_backward(dy, ctx).dx, ref.group_norm_backward(dy, other).dx)


def test_batch_norm_of_one_sample_is_instance_norm() -> None:
    rng = np.random.default_rng(14)
    x = rng.standard_normal((1, 4, 5, 3))
    close(ref.batch_norm(x, training=True), ref.instance_norm(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_switchable_norm_with_one_hot_logits_is_the_chosen_norm(chosen: int, training: bool) -> None:
    rng = np.random.default_rng(15)
    x, dy = rng.standard_normal((2, 3, 4, 5, 2)) + 3
    w, b = rng.standard_normal((2, 4))
    mean, var = rng.standard_normal(4), rng.uniform(0.5, 2, 4)
    logits = np.where(np.arange(3) == chosen, 0.0, -1000.0)
    stats = [(mean.copy(), var.copy()) for _ in range(2)]
    y, ctx = ref.switchable_norm_forward(x, logits, logits, *stats[0], w, b, training)
    z, other = {
        0: lambda: ref.instance_norm_forward(x, weight=w, bias=b),
        1: lambda: ref.group_norm_forward(x, 1, w, b),
        2: lambda: ref.batch_norm_forward(x, *stats[1], w, b, training),
    }[chosen]()
    back = (ref.instance_norm_backward, ref.group_norm_backward, ref.batch_norm_backward)[chosen]
    close(y, z)
    grads = ref.switchable_norm_backward(dy, ctx)
    for one, two in zip(grads, back(dy, other), strict=False):
        close(one, two)
    close(grads.dmean_logits, np.zeros(3))
    if chosen == 2:
        for one, two in zip(*stats, strict=True):
            close(one, two)


@pytest.mark.parametrize("dtype", FLOATS)
def test_gamma_sigma_beta_mean_is_the_identity(dtype: str) -> None:
    """With gamma = sqrt(var + eps) and beta = mean every norm returns x."""
    rng = np.random.default_rng(16)
    x = (rng.standard_normal((6, 4, 5)) * 3 + 7).astype(dtype)
    tolerance = 20 * np.finfo(dtype).eps
    mean, var = ref.moments(x, (0, 2))
    close(ref.batch_norm(x, weight=np.sqrt(var + np.dtype(dtype).type(1e-5)), bias=mean, training=True), x, tolerance)
    one = x[:1]
    mean, var = ref.moments(one, (0, 2))
    gamma = np.sqrt(var + np.dtype(dtype).type(1e-5))
    close(ref.instance_norm(one, weight=gamma, bias=mean), one, tolerance)
    close(ref.group_norm(one, 4, gamma, mean), one, tolerance)


def test_rms_norm_is_layer_norm_of_centred_rows() -> None:
    rng = np.random.default_rng(17)
    x = rng.standard_normal((5, 8))
    x -= x.mean(axis=1, keepdims=True)
    close(ref.rms_norm(x, 8, eps=1e-5), ref.layer_norm(x, 8), 1e-12)
    close((ref.rms_norm(x, 8, eps=0.0) ** 2).mean(axis=1), np.ones(5))


def test_normalized_output_has_mean_beta_and_deviation_gamma() -> None:
    rng = np.random.default_rng(18)
    x, w, b = rng.standard_normal((50, 3, 4)) * 5 + 100, rng.uniform(1, 2, 3), rng.standard_normal(3)
    y = ref.batch_norm(x, weight=w, bias=b, training=True, eps=0.0)
    close(y.mean(axis=(0, 2)), b, 1e-11)
    close(y.std(axis=(0, 2)), w, 1e-11)


def test_every_training_gradient_is_orthogonal_to_one_and_to_xhat() -> None:
    """dx of a norm has no component along the two directions that the norm removes; with dy = 1 it is zero."""
    rng = np.random.default_rng(19)
    x, dy = rng.standard_normal((2, 20, 3))
    y, ctx = ref.batch_norm_forward(x, training=True, eps=0.0)
    dx = ref.batch_norm_backward(dy, ctx).dx
    close(dx.sum(axis=0), np.zeros(3), 1e-12)
    close((dx * y).sum(axis=0), np.zeros(3), 1e-12)
    close(ref.batch_norm_backward(np.ones_like(x), ctx).dx, np.zeros_like(x), 1e-12)


def test_switchable_variance_does_not_cancel() -> None:
    """A mean of 1e8 times the deviation: mean(var + mu^2) - mu^2 would have no digit left."""
    rng = np.random.default_rng(20)
    x = rng.standard_normal((4, 3, 6)) + 1e8
    logits, w, b = np.zeros(3), np.ones(3), np.zeros(3)
    dy = rng.standard_normal(x.shape)
    expected = exact.switchable(x, dy, logits, logits, w, b, 1e-5)
    y, ctx = ref.switchable_norm_forward(x, logits, logits, training=True)
    grads = ref.switchable_norm_backward(dy, ctx)
    close(y, expected.y, 1e-6)
    close(grads.dx, expected.dx, 1e-6)
    close(grads.dmean_logits, expected.dmean_logits, 1e-6)
    close(grads.dvar_logits, expected.dvar_logits, 1e-6)


def test_weight_norm_rows_have_length_g() -> None:
    rng = np.random.default_rng(21)
    v, g = rng.standard_normal((4, 3, 2)), rng.uniform(1, 2, 4)
    close(np.linalg.norm(ref.weight_norm(v, g).reshape(4, -1), axis=1), g)
    close(ref.weight_norm(v * 7, g), ref.weight_norm(v, g))


def test_softmax_sums_to_one_and_ignores_a_shift() -> None:
    rng = np.random.default_rng(22)
    x = rng.standard_normal((4, 6)) * 20
    close(ref.softmax(x).sum(axis=1), np.ones(4))
    close(ref.softmax(x + 1000), ref.softmax(x), 1e-12)
    close(np.exp(ref.log_softmax(x)), ref.softmax(x), 1e-12)
    assert ref.log_softmax(np.array([0.0, -1e5]))[1] == -1e5


# ------------------------------------------------------------------------------------------------- accuracy of the twin


def test_switchable_and_weight_norm_in_float64_are_reference_values() -> None:
    rng = np.random.default_rng(42)
    x, dy = rng.standard_normal((2, 4, 6, 5))
    w, b = rng.standard_normal((2, 6))
    one, two = rng.standard_normal((2, 3))
    y, ctx = ref.switchable_norm_forward(x, one, two, None, None, w, b, True)
    g = ref.switchable_norm_backward(dy, ctx)
    e = exact.switchable(x, dy, one, two, w, b, 1e-5)
    for actual, expected in ((y, e.y), (g.dx, e.dx), (g.dmean_logits, e.dmean_logits), (g.dvar_logits, e.dvar_logits)):
        close(actual, expected, 1e-13)
    v, dw = rng.standard_normal((2, 4, 7))
    y, ctx = ref.weight_norm_forward(v, w[:4])
    grads = ref.weight_norm_backward(dw, ctx)
    f = exact.weight_norm(v, w[:4], dw)
    for actual, expected in ((y, f.w), (grads.dv, f.dv), (grads.dg, f.dg)):
        close(actual, expected, 1e-14)


@pytest.mark.parametrize("norm", ["batch", "layer", "rms", "instance", "group"])
def test_reference_values_in_float64_are_reference_values(norm: str) -> None:
    """float64 input against exact arithmetic: far more digits than float32 results need, forward and backward."""
    rng = np.random.default_rng(23)
    x, dy = rng.standard_normal((2, 4, 6, 5, 3))
    x += 10
    size = (3,) if norm in ("layer", "rms") else (6,)
    w, b = rng.standard_normal((2, *size))
    calls: dict[str, Callable[[], Any]] = {
        "batch": lambda: ref.batch_norm_forward(x, None, None, w, b, True),
        "layer": lambda: ref.layer_norm_forward(x, 3, w, b),
        "rms": lambda: ref.rms_norm_forward(x, 3, w, 1e-5),
        "instance": lambda: ref.instance_norm_forward(x, None, None, w, b),
        "group": lambda: ref.group_norm_forward(x, 2, w, b),
    }
    y, ctx = calls[norm]()
    grads = getattr(ref, f"{norm}_norm_backward")(dy, ctx)
    view = exact.view(norm, x.shape, groups=2)
    centre = norm != "rms"
    f = exact.forward(view, x, w, b if centre else None, 1e-5, centre=centre)
    g = exact.backward(view, x, dy, w, 1e-5, centre=centre)
    close(y, f.y, 1e-13)
    close(grads.dx, g.dx, 1e-13)
    close(grads.dweight.ravel(), g.dweight, 1e-13)
    if centre:
        close(grads.dbias.ravel(), g.dbias, 1e-13)
        close(ctx.mean.ravel(), f.mean, 1e-14)
    close(ctx.rstd.ravel(), 1 / np.sqrt(f.var + 1e-5), 1e-14)


@pytest.mark.parametrize("base", [np.float64, exact.LONG])
def test_wide_arithmetic_has_twice_the_digits(base: Any) -> None:
    """The yardstick itself, against rationals of 300 bits."""
    mpmath = pytest.importorskip("mpmath")
    rng = np.random.default_rng(24)
    with mpmath.workprec(300):

        def value(w: exact.Wide) -> Any:
            parts = [
                (float(p), float(p - exact.LONG(float(p))))
                for p in (w.hi.item(0), w.lo.item(0))
                for p in [exact.LONG(p)]
            ]
            return sum(mpmath.mpf(t) for pair in parts for t in pair)

        for _ in range(50):
            a, b = (
                exact.Wide((rng.standard_normal(1) * 10.0 ** rng.integers(-30, 30)).astype(base)) / 3 for _ in range(2)
            )
            for one, two in (
                (a + b, value(a) + value(b)), (a - b, value(a) - value(b)), (a * b, value(a) * value(b)),
                (a / b, value(a) / value(b)), (abs(a).sqrt(), mpmath.sqrt(abs(value(a)))),
            ):  # fmt: skip
                assert abs(value(one) - two) <= abs(two) * mpmath.mpf(2) ** (8 - 2 * np.finfo(base).nmant)


# ------------------------------------------------------------------------------------------------------- torch's values


def both(torch: Any, arrays: dict[str, Any]) -> dict[str, Any]:
    return {k: None if a is None else torch.tensor(a, requires_grad=True) for k, a in arrays.items()}


def check_torch(y: Any, grads: dict[str, Any], expected: Any, tensors: dict[str, Any], dy: Any, torch: Any) -> None:
    close(y, expected.detach(), 1e-10)
    expected.backward(torch.tensor(dy))
    for name, gradient in grads.items():
        if tensors[name] is None:
            assert gradient is None
        else:
            close(gradient, tensors[name].grad, 1e-10)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(7, 3), (5, 4, 11), (3, 5, 7, 2), (2, 3, 2, 3, 5)])
def test_batch_and_instance_norm_agree_with_torch(shape: tuple[int, ...], training: bool, affine: bool) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(25)
    c = shape[1]
    dy = rng.standard_normal(shape)
    arrays = {
        "x": rng.standard_normal(shape) * 2 + 5,
        "weight": rng.standard_normal(c) if affine else None,
        "bias": rng.standard_normal(c) if affine else None,
    }
    for norm in ("batch_norm", "instance_norm"):
        if norm == "instance_norm" and len(shape) == 2:
            continue
        mean, var = rng.standard_normal(c), rng.uniform(0.5, 2, c)
        t = both(torch, arrays)
        mean_t, var_t = torch.tensor(mean), torch.tensor(var)
        expected = getattr(torch.nn.functional, norm)(
            t["x"], mean_t, var_t, t["weight"], t["bias"], training, 0.3, 1e-3
        )
        y, ctx = getattr(ref, f"{norm}_forward")(
            arrays["x"], mean, var, arrays["weight"], arrays["bias"], training, 0.3, 1e-3
        )
        g = getattr(ref, f"{norm}_backward")(dy, ctx)
        check_torch(y, {"x": g.dx, "weight": g.dweight, "bias": g.dbias}, expected, t, dy, torch)
        close(mean, mean_t)
        close(var, var_t)


@pytest.mark.parametrize(("shape", "groups"), [((3, 6), 2), ((2, 6, 5), 3), ((3, 7, 3, 2), 7), ((2, 4, 2, 3, 2), 1)])
def test_group_norm_agrees_with_torch(shape: tuple[int, ...], groups: int) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(26)
    dy = rng.standard_normal(shape)
    arrays = affine_arguments(rng, shape, shape[1:2])
    t = both(torch, arrays)
    expected = torch.nn.functional.group_norm(t["x"], groups, t["weight"], t["bias"])
    y, ctx = ref.group_norm_forward(arrays["x"], groups, arrays["weight"], arrays["bias"])
    g = ref.group_norm_backward(dy, ctx)
    check_torch(y, {"x": g.dx, "weight": g.dweight, "bias": g.dbias}, expected, t, dy, torch)


@pytest.mark.parametrize(
    ("shape", "normalized"), [((5,), (5,)), ((4, 7), (7,)), ((3, 4, 5), (4, 5)), ((2, 3, 1), (1,))]
)
def test_layer_and_rms_norm_agree_with_torch(shape: tuple[int, ...], normalized: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(27)
    dy = rng.standard_normal(shape)
    arrays = affine_arguments(rng, shape, normalized)
    t = both(torch, arrays)
    expected = torch.nn.functional.layer_norm(t["x"], normalized, t["weight"], t["bias"])
    y, ctx = ref.layer_norm_forward(arrays["x"], normalized, arrays["weight"], arrays["bias"])
    g = ref.layer_norm_backward(dy, ctx)
    check_torch(y, {"x": g.dx, "weight": g.dweight, "bias": g.dbias}, expected, t, dy, torch)
    t = both(torch, {k: arrays[k] for k in ("x", "weight")})
    expected = torch.nn.functional.rms_norm(t["x"], normalized, t["weight"])
    y, ctx = ref.rms_norm_forward(arrays["x"], normalized, arrays["weight"])
    g = ref.rms_norm_backward(dy, ctx)
    check_torch(y, {"x": g.dx, "weight": g.dweight}, expected, t, dy, torch)
    assert g.dbias is None


@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_weight_norm_agrees_with_torch(dim: int | None) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(28)
    v, dw = rng.standard_normal((2, 4, 3, 5))
    norm = np.sqrt((v**2).sum(axis=tuple(a for a in range(3) if a != dim), keepdims=True))
    arrays = {"v": v, "g": np.asarray(rng.standard_normal(norm.shape if dim is not None else ()))}
    t = both(torch, arrays)
    expected = torch._weight_norm(t["v"], t["g"], -1 if dim is None else dim)
    w, ctx = ref.weight_norm_forward(v, arrays["g"], dim)
    g = ref.weight_norm_backward(dw, ctx)
    check_torch(w, {"v": g.dv, "g": g.dg}, expected, t, dw, torch)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_softmax_agrees_with_torch(axis: int) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(29)
    x, dy = rng.standard_normal((2, 3, 5, 4)) * 5
    for name in ("softmax", "log_softmax"):
        t = both(torch, {"x": x})
        y, ctx = getattr(ref, f"{name}_forward")(x, axis)
        g = getattr(ref, f"{name}_backward")(dy, ctx)
        check_torch(y, {"x": g.dx}, getattr(torch.nn.functional, name)(t["x"], axis), t, dy, torch)


@pytest.mark.parametrize("shape", [(5,), (7, 4), (3, 5, 2), (2, 3, 4, 5)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [-100, 2])
def test_cross_entropy_agrees_with_torch(
    shape: tuple[int, ...], reduction: Any, smoothing: float, weighted: bool, ignored: int
) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(30)
    classes = shape[0] if len(shape) == 1 else shape[1]
    logits = rng.standard_normal(shape) * 3
    targets = np.asarray(rng.integers(0, classes, () if len(shape) == 1 else (shape[0], *shape[2:])))
    targets.flat[0] = -100 if ignored == -100 and targets.ndim else 1
    weight = rng.uniform(0.1, 2, classes) if weighted else None
    t = both(torch, {"logits": logits})
    expected = torch.nn.functional.cross_entropy(
        t["logits"], torch.tensor(targets), None if weight is None else torch.tensor(weight), ignore_index=ignored,
        reduction=reduction, label_smoothing=smoothing,
    )  # fmt: skip
    loss, ctx = ref.cross_entropy_forward(logits, targets, weight, ignored, reduction, smoothing)
    dy = rng.standard_normal(np.shape(loss))
    g = ref.cross_entropy_backward(dy, ctx)
    check_torch(loss, {"logits": g.dlogits}, expected, t, dy, torch)


def test_cross_entropy_with_every_target_ignored_is_nan_as_torch_and_has_no_gradient() -> None:
    logits = np.random.default_rng(31).standard_normal((3, 4))
    loss, ctx = ref.cross_entropy_forward(logits, np.full(3, -100))
    assert np.isnan(loss)
    np.testing.assert_array_equal(ref.cross_entropy_backward(1.0, ctx).dlogits, 0)
    assert ref.cross_entropy(logits, np.full(3, -100), reduction="sum") == 0


# -------------------------------------------------------------------------------------------------------------- dropout


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)  # fmt: skip
def test_philox_known_answers(counter: Any, key: Any, words: Any) -> None:
    """The known-answer vectors that the generator's authors publish with Random123."""
    counters = tuple(np.array([c], np.uint64) for c in counter)
    assert tuple(int(w[0]) for w in regularization._philox4x32(counters, key)) == words


def test_dropout_keeps_the_mean_and_the_rate() -> None:
    x = np.ones(200_000)
    for p in (0.0, 0.1, 0.5, 0.9):
        y = ref.dropout(x, p, seed=1)
        assert abs(y.mean() - 1) <= 5 * np.sqrt(p / (1 - p) / x.size)
        assert abs((y == 0).mean() - p) <= 5 * np.sqrt(p * (1 - p) / x.size)
        np.testing.assert_array_equal(y[y != 0], 1 / (1 - p))


def test_dropout_mask_depends_on_seed_and_position_alone() -> None:
    x = np.ones((40, 25), np.float32)
    y = ref.dropout(x, 0.5, seed=3)
    np.testing.assert_array_equal(ref.dropout(x, 0.5, seed=3), y)
    np.testing.assert_array_equal(ref.dropout(x.ravel()[:37], 0.5, seed=3), y.ravel()[:37])
    np.testing.assert_array_equal(ref.dropout(np.asfortranarray(x), 0.5, seed=3), y)
    assert (ref.dropout(x, 0.5, seed=4) != y).any()
    assert (ref.dropout(x, 0.5, seed=3 + 2**32) != y).any()
    assert (ref.dropout(x, 0.5) != ref.dropout(x, 0.5)).any()


def test_dropout_keeps_one_bit_per_element() -> None:
    _, ctx = ref.dropout_forward(np.ones((3, 11), np.float32), 0.5, seed=1)
    assert ctx.mask.dtype == np.uint8 and ctx.mask.size == 5
    assert not any(isinstance(v, np.ndarray) and v.size >= 33 for v in vars(ctx).values())


def test_dropout_drops_what_is_not_finite() -> None:
    x = np.full(1000, np.nan, np.float32)
    y = ref.dropout(x, 0.5, seed=1)
    kept = ref.dropout(np.ones_like(x), 0.5, seed=1) != 0
    assert np.isnan(y[kept]).all() and (y[~kept] == 0).all() and not np.signbit(y[~kept]).any()


# --------------------------------------------------------------------------------------------------- running statistics


def test_running_statistics_move_towards_the_unbiased_variance() -> None:
    rng = np.random.default_rng(32)
    x = rng.standard_normal((6, 3, 4))
    mean, var = np.zeros(3), np.ones(3)
    ref.batch_norm(x, mean, var, training=True, momentum=0.25)
    close(mean, 0.25 * x.mean(axis=(0, 2)))
    close(var, 0.75 + 0.25 * x.var(axis=(0, 2), ddof=1))


def test_cumulative_momentum_gives_the_mean_over_batches() -> None:
    """momentum = 1 / t at batch t, which is what a layer with momentum=None passes."""
    rng = np.random.default_rng(33)
    batches = rng.standard_normal((5, 6, 3))
    mean, var = np.zeros(3), np.ones(3)
    for t, x in enumerate(batches, 1):
        ref.batch_norm(x, mean, var, training=True, momentum=1 / t)
    close(mean, batches.mean(axis=(0, 1)))
    close(var, np.mean([x.var(axis=0, ddof=1) for x in batches], axis=0))


def test_evaluation_leaves_running_statistics_alone() -> None:
    x = np.random.default_rng(34).standard_normal((4, 3, 5))
    mean, var = np.full(3, 2.0), np.full(3, 3.0)
    mean.flags.writeable = var.flags.writeable = False
    close(ref.batch_norm(x, mean, var), (x - 2) / np.sqrt(3 + 1e-5))
    close(ref.instance_norm(x, mean, var, use_input_stats=False), (x - 2) / np.sqrt(3 + 1e-5))
    ref.switchable_norm(x, np.zeros(3), np.zeros(3), mean, var)


# ---------------------------------------------------------------------------------------- storage types, layouts, edges

NORM_CALLS: dict[str, Callable[..., Any]] = {
    "batch_norm": lambda f, x, w, b: f(x, None, None, w, b, True),
    "layer_norm": lambda f, x, w, b: f(x, x.shape[-1], w[: x.shape[-1]], b[: x.shape[-1]]),
    "rms_norm": lambda f, x, w, b: f(x, x.shape[-1], w[: x.shape[-1]]),
    "group_norm": lambda f, x, w, b: f(x, 2, w, b),
    "instance_norm": lambda f, x, w, b: f(x, None, None, w, b),
    "switchable_norm": lambda f, x, w, b: f(x, w[:3], b[:3], None, None, w, b, True),
}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", NORM_CALLS)
def test_half_types_are_the_float32_result_rounded_once(name: str, dtype: str) -> None:
    half = dtype_of(dtype)
    rng = np.random.default_rng(35)
    x, dy = rng.standard_normal((2, 3, 4, 3, 4)).astype(half)
    w, b = rng.standard_normal((2, 4)).astype(np.float32)
    forward, backward = getattr(ref, f"{name}_forward"), getattr(ref, f"{name}_backward")
    y, ctx = NORM_CALLS[name](forward, x, w, b)
    z, other = NORM_CALLS[name](forward, x.astype(np.float32), w, b)
    assert y.dtype == half
    np.testing.assert_array_equal(y, z.astype(half))
    g, h = backward(dy, ctx), backward(dy.astype(np.float32), other)
    assert g.dx.dtype == half
    np.testing.assert_array_equal(g.dx, h.dx.astype(half))
    for one, two in zip(g[1:], h[1:], strict=True):
        assert (one is None and two is None) or one.dtype == np.float32
        if one is not None:
            np.testing.assert_array_equal(one, two)
    same, _ = NORM_CALLS[name](forward, x, w.astype(half), b.astype(half))
    assert same.dtype == half


@pytest.mark.parametrize("dtype", HALVES)
def test_half_types_beside_the_norms(dtype: str) -> None:
    half = dtype_of(dtype)
    rng = np.random.default_rng(36)
    x = rng.standard_normal((4, 6)).astype(half)
    wide = x.astype(np.float32)
    for name in ("softmax", "log_softmax"):
        np.testing.assert_array_equal(getattr(ref, name)(x), getattr(ref, name)(wide).astype(half))
    np.testing.assert_array_equal(ref.dropout(x, 0.4, seed=2), ref.dropout(wide, 0.4, seed=2).astype(half))
    loss, ctx = ref.cross_entropy_forward(x, np.arange(4))
    assert loss.dtype == np.float32 and ref.cross_entropy_backward(1.0, ctx).dlogits.dtype == half
    mean, var = ref.moments(x, 1)
    assert mean.dtype == var.dtype == np.float32
    assert ref.weight_norm(x, np.ones((4, 1), np.float32)).dtype == half


@pytest.mark.parametrize("name", ["batch_norm", "group_norm", "instance_norm", "switchable_norm"])
def test_channels_last_is_the_same_norm(name: str) -> None:
    rng = np.random.default_rng(37)
    x, dy = rng.standard_normal((2, 3, 4, 5, 2))
    w, b = rng.standard_normal((2, 4))
    forward, backward = getattr(ref, f"{name}_forward"), getattr(ref, f"{name}_backward")
    y, ctx = NORM_CALLS[name](forward, x, w, b)
    g = backward(dy, ctx)
    last = [np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, dy)]
    z, other = NORM_CALLS[name](lambda *a: forward(*a, axis=-1), last[0], w, b)
    h = backward(last[1], other)
    close(np.moveaxis(z, -1, 1), y, 1e-13)
    close(np.moveaxis(h.dx, -1, 1), g.dx, 1e-13)
    for one, two in zip(g[1:], h[1:], strict=True):
        close(one, two, 1e-12)
    strided = np.moveaxis(last[0], -1, 1)
    z, _ = NORM_CALLS[name](forward, strided, w, b)
    assert z.strides == strided.strides
    close(z, y, 1e-13)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", NORM_CALLS)
@pytest.mark.parametrize("shape", [(0, 4, 3, 4), (3, 4, 0, 4)])
def test_empty_batches(name: str, dtype: str, shape: tuple[int, ...]) -> None:
    x = np.zeros(shape, dtype)
    w, b = np.ones((2, 4), dtype)
    y, ctx = NORM_CALLS[name](getattr(ref, f"{name}_forward"), x, w, b)
    assert y.shape == shape and y.dtype == x.dtype
    g = getattr(ref, f"{name}_backward")(x, ctx)
    assert g.dx.shape == shape
    for gradient in g[1:]:
        if gradient is not None:
            np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
def test_an_empty_batch_leaves_running_statistics_untouched(name: str) -> None:
    mean, var = np.full(4, 2.0), np.full(4, 3.0)
    getattr(ref, name)(np.zeros((0, 4, 5)), mean, var, None, None, True)
    np.testing.assert_array_equal(mean, 2)
    np.testing.assert_array_equal(var, 3)


def test_empty_input_beside_the_norms() -> None:
    empty = np.zeros((0, 5))
    assert ref.softmax(empty).shape == ref.log_softmax(empty).shape == ref.dropout(empty, 0.5).shape == (0, 5)
    assert ref.softmax(np.zeros((3, 0))).shape == (3, 0)
    loss, ctx = ref.cross_entropy_forward(empty, np.zeros(0, int), reduction="sum")
    assert loss == 0 and ref.cross_entropy_backward(1.0, ctx).dlogits.shape == (0, 5)
    assert np.isnan(ref.cross_entropy(empty, np.zeros(0, int)))
    w, ctx = ref.weight_norm_forward(np.zeros((3, 0)), np.ones((3, 1)))
    assert w.shape == (3, 0)
    np.testing.assert_array_equal(ref.weight_norm_backward(w, ctx).dg, 0)


@pytest.mark.parametrize("name", [*NORM_CALLS, "softmax", "log_softmax", "dropout"])
def test_out_receives_the_result_and_may_be_x(name: str) -> None:
    rng = np.random.default_rng(38)
    x = rng.standard_normal((3, 4, 3, 4))
    w, b = rng.standard_normal((2, 4))
    call = NORM_CALLS.get(name) or (lambda f, x, w, b: f(x) if name != "dropout" else f(x, seed=1))
    plain = getattr(ref, name)
    expected = call(plain, x, w, b)
    for out in (np.empty_like(x), np.empty((3, 4, 3, 8))[..., ::2], x.copy()):
        source = out if out.flags.c_contiguous and (out == x).all() else x
        assert call(lambda *a, o=out, **k: plain(*a, out=o, **k), source, w, b) is out
        np.testing.assert_array_equal(out, expected)
    if name in NORM_CALLS:
        with pytest.raises(ValueError, match="out"):
            call(lambda *a: getattr(ref, f"{name}_forward")(*a, out=x), x, w, b)
    readonly = np.empty_like(x)
    readonly.flags.writeable = False
    for bad in (readonly, np.empty((3, 4)), np.empty(x.shape, np.float32), [0.0]):
        with pytest.raises((ValueError, TypeError), match="out"):
            call(lambda *a, o=bad, **k: plain(*a, out=o, **k), x, w, b)


def test_relu_keeps_nan_and_has_no_negative_zero() -> None:
    x = np.array([[-1.0, np.nan], [2.0, 1.0], [-0.0, 3.0]])
    y, ctx = ref.batch_norm_forward(x, np.zeros(2), np.ones(2), activation="relu", eps=0.0)
    np.testing.assert_array_equal(y, [[0, np.nan], [2, 1], [0, 3]])
    assert not np.signbit(y).any()
    dx = ref.batch_norm_backward(np.ones_like(x), ctx).dx
    np.testing.assert_array_equal(dx, [[0, 0], [1, 1], [0, 1]])


def test_residual_of_the_trailing_norms_returns_the_rounded_sum() -> None:
    rng = np.random.default_rng(39)
    x, r, dy = rng.standard_normal((3, 5, 8)).astype(np.float16)
    for name in ("layer_norm", "rms_norm"):
        y, ctx = getattr(ref, f"{name}_forward")(x, 8, residual=r)
        np.testing.assert_array_equal(ctx.sum, (x.astype(np.float32) + r.astype(np.float32)).astype(np.float16))
        np.testing.assert_array_equal(y, getattr(ref, name)(ctx.sum, 8))
        grads = getattr(ref, f"{name}_backward")(dy, ctx)
        assert grads.dresidual is grads.dx


def test_gradients_without_residual_still_answer_dresidual() -> None:
    x = np.random.default_rng(40).standard_normal((5, 3))
    _, ctx = ref.batch_norm_forward(x, training=True)
    grads = ref.batch_norm_backward(x, ctx)
    assert grads.dresidual is None and grads._fields == ("dx", "dweight", "dbias")


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), ()])
def test_moments_are_numpys(axis: Any, keepdims: bool, ddof: int) -> None:
    x = np.random.default_rng(41).standard_normal((3, 4, 5))
    if axis == () and ddof:
        return
    mean, var = ref.moments(x, axis, ddof=ddof, keepdims=keepdims)
    close(mean, x.mean(axis=axis, keepdims=keepdims), 1e-14)
    close(var, x.var(axis=axis, ddof=ddof, keepdims=keepdims), 1e-14)
    assert np.shape(mean) == np.shape(x.mean(axis=axis, keepdims=keepdims))


def test_moments_of_too_few_values_are_nan() -> None:
    mean, var = ref.moments(np.zeros((2, 0)), 1)
    assert np.isnan(mean).all() and np.isnan(var).all()
    mean, var = ref.moments(np.ones((2, 1)), 1, ddof=1)
    assert (mean == 1).all() and np.isnan(var).all()


# --------------------------------------------------------------------------------------------------------------- errors

X = np.ones((3, 4, 5))
L = np.zeros(3)


@pytest.mark.parametrize(
    ("error", "names", "call"),
    [
        (TypeError, "x", lambda: ref.batch_norm(X.astype(int), training=True)),
        (TypeError, "x", lambda: ref.layer_norm(X.astype(">f8"), 5)),
        (TypeError, "x", lambda: ref.rms_norm(X.astype(np.longdouble), 5)),
        (TypeError, "x", lambda: ref.softmax(np.ma.masked_array(X))),
        (TypeError, "x", lambda: ref.moments(X.astype(complex))),
        (TypeError, "x", lambda: ref.dropout(X.astype(object))),
        (ValueError, "x", lambda: ref.batch_norm(np.ones((1, 4)), training=True)),
        (ValueError, "x", lambda: ref.switchable_norm(np.ones((1, 4)), L, L, training=True)),
        (ValueError, "x", lambda: ref.instance_norm(np.ones((2, 4)))),
        (ValueError, "axis", lambda: ref.batch_norm(X, training=True, axis=3)),
        (ValueError, "x", lambda: ref.batch_norm(np.ones(4), training=True, axis=0)),
        (TypeError, "x", lambda: ref.softmax([1.0, 2.0])),
        (ValueError, "running_var", lambda: ref.batch_norm(X, np.ones(4), training=True)),
        (ValueError, "axis", lambda: ref.group_norm(X, 1, axis=0)),
        (ValueError, "axis", lambda: ref.softmax(X, 3)),
        (ValueError, "axis", lambda: ref.moments(X, (0, -3))),
        (ValueError, "weight", lambda: ref.batch_norm(X, weight=np.ones(5), training=True)),
        (TypeError, "weight", lambda: ref.batch_norm(X, weight=np.ones(4, np.float32), training=True)),
        (TypeError, "weight", lambda: ref.layer_norm(X.astype(np.float32), 5, np.ones(5))),
        (ValueError, "bias", lambda: ref.layer_norm(X, (4, 5), bias=np.ones(5))),
        (ValueError, "running_mean", lambda: ref.batch_norm(X)),
        (ValueError, "running_var", lambda: ref.instance_norm(X, np.ones(4), use_input_stats=False)),
        (ValueError, "running_var", lambda: ref.batch_norm(X, np.ones(4), np.ones(3))),
        (ValueError, "running_mean", lambda: ref.batch_norm(X, np.broadcast_to(1.0, 4), np.ones(4), training=True)),
        (ValueError, "momentum", lambda: ref.batch_norm(X, training=True, momentum=1.5)),
        (ValueError, "momentum", lambda: ref.batch_norm(X, training=True, momentum=None)),
        (ValueError, "eps", lambda: ref.group_norm(X, 2, eps=-1e-5)),
        (ValueError, "eps", lambda: ref.group_norm(X, 2, eps=float("inf"))),
        (ValueError, "num_groups", lambda: ref.group_norm(X, 3)),
        (ValueError, "num_groups", lambda: ref.group_norm(X, 0)),
        (ValueError, "normalized_shape", lambda: ref.layer_norm(X, (3, 5))),
        (ValueError, "normalized_shape", lambda: ref.rms_norm(X, ())),
        (ValueError, "activation", lambda: ref.batch_norm(X, training=True, activation="gelu")),
        (ValueError, "residual", lambda: ref.layer_norm(X, 5, residual=X[:1])),
        (TypeError, "residual", lambda: ref.batch_norm(X, training=True, residual=X.astype(np.float32))),
        (ValueError, "mean_logits", lambda: ref.switchable_norm(X, np.zeros(2), L, training=True)),
        (TypeError, "var_logits", lambda: ref.switchable_norm(X, L, None, training=True)),
        (ValueError, "v", lambda: ref.weight_norm(np.array([[1.0, 2.0], [0.0, 0.0]]), np.ones((2, 1)))),
        (ValueError, "g", lambda: ref.weight_norm(X, np.ones(4))),
        (ValueError, "dim", lambda: ref.weight_norm(X, np.ones(4), 3)),
        (ValueError, "p", lambda: ref.dropout(X, 1.0)),
        (ValueError, "p", lambda: ref.dropout(X, -0.1)),
        (ValueError, "seed", lambda: ref.dropout(X, 0.5, seed=-1)),
        (ValueError, "seed", lambda: ref.dropout(X, 0.5, seed=2**64)),
        (TypeError, "targets", lambda: ref.cross_entropy(X[0], np.zeros(4))),
        (ValueError, "targets", lambda: ref.cross_entropy(X[0], np.zeros(3, int))),
        (ValueError, r"targets.*\(2,\)", lambda: ref.cross_entropy(X[0], np.array([0, -100, 5, 9]))),
        (ValueError, "reduction", lambda: ref.cross_entropy(X[0], np.zeros(4, int), reduction="max")),
        (ValueError, "label_smoothing", lambda: ref.cross_entropy(X[0], np.zeros(4, int), label_smoothing=1.1)),
        (ValueError, "dy", lambda: ref.batch_norm_backward(X[:2], ref.batch_norm_forward(X, training=True)[1])),
        (TypeError, "dy", lambda: ref.softmax_backward(X.astype(np.float32), ref.softmax_forward(X)[1])),
    ],
)  # fmt: skip
def test_errors_name_the_argument(error: type[Exception], names: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match=f"^{names}"):
        call()


def test_an_error_leaves_running_statistics_untouched() -> None:
    mean, var = np.zeros(4), np.ones(4)
    var.flags.writeable = False
    with pytest.raises(ValueError, match="running_var"):
        ref.batch_norm(X, mean, var, training=True)
    np.testing.assert_array_equal(mean, 0)


# ------------------------------------------------------------------------------------------------------------ the twins


def test_it_imports_numpy_alone() -> None:
    """Loaded by path, apart from the package: neither the kernels nor anything else that is not Python's own comes along."""
    code = (
        "import importlib.util, sys; "
        "spec = importlib.util.spec_from_file_location('reference', sys.argv[1]); "
        "sys.modules['reference'] = module = importlib.util.module_from_spec(spec); "
        "spec.loader.exec_module(module); "
        "print({name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names) - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; before = {{n.split('.')[0] for n in sys.modules}}; {code}", ref.__file__],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert set(re.findall("'(.*?)'", done.stdout)) == {"reference", "numpy"}


@pytest.mark.parametrize("name", ref.__all__)
def test_every_public_name_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(getattr(ref, name))


@pytest.mark.parametrize("name", ALL)
def test_forward_takes_the_same_arguments(name: str) -> None:
    if name == "moments":
        return
    plain, forward = (inspect.signature(getattr(ref, n)) for n in (name, f"{name}_forward"))
    assert plain.parameters == forward.parameters
