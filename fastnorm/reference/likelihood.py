"""Softmax, its logarithm, and cross-entropy: what turns logits into probabilities, and those into a loss.

The maximum of the row is subtracted first, so that no exponential overflows; log p = z - log(sum(exp(z))).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._arithmetic import _below_maximum
from ._checks import _array, _axis, _check_out, _gradient, _parameter
from ._shapes import _broadcast, _compute, _store
from ._types import Array, Context, InputGrad, LogitsGrad, Reduction

__all__ = [
    "cross_entropy",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "log_softmax",
    "log_softmax_backward",
    "log_softmax_forward",
    "softmax",
    "softmax_backward",
    "softmax_forward",
]


def softmax(x: Array, axis: int = -1, *, out: Array | None = None) -> Array:
    """y = exp(x - max) / sum(exp(x - max)), along `axis`; subtracting the maximum keeps exp in range and changes
    nothing.

    x has any rank above 0; dtypes as `batch_norm`. Errors: TypeError for a dtype, ValueError for `axis` or `out`.
    Source: Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990.
    """
    _check_out(out, _array("x", x))
    y, _ = softmax_forward(x, axis)
    return _store(y, y, out)


def softmax_forward(x: Array, axis: int = -1, *, out: Array | None = None) -> tuple[Array, Context]:
    """`softmax`, and the context for `softmax_backward`, which keeps y and not x: `out` may be x."""
    x = _array("x", x)
    axis = _axis(axis, x.ndim)
    _check_out(out, x)
    e = np.exp(_below_maximum(_compute(x), axis))
    y = _store(e / e.sum(axis=axis, keepdims=True), x, out)
    return y, Context(y=y, axis=axis)


def softmax_backward(dy: Array, ctx: Context, *, out: Array | None = None) -> InputGrad:
    """dx = y * (dy - sum(dy * y)), the sum along the axis. `out` receives dx."""
    dy = _gradient(dy, ctx.y)
    _check_out(out, ctx.y)
    y, d = _compute(ctx.y), _compute(dy)
    dx = y * (d - (d * y).sum(axis=ctx.axis, keepdims=True))
    return InputGrad(_store(dx, ctx.y, out))


def log_softmax(x: Array, axis: int = -1, *, out: Array | None = None) -> Array:
    """y = x - max - log(sum(exp(x - max))), along `axis`: the logarithm of `softmax`, finite where softmax underflows.

    Shapes, dtypes and errors as `softmax`.
    """
    _check_out(out, _array("x", x))
    y, _ = log_softmax_forward(x, axis)
    return _store(y, y, out)


def log_softmax_forward(x: Array, axis: int = -1, *, out: Array | None = None) -> tuple[Array, Context]:
    """`log_softmax`, and the context for `log_softmax_backward`, which keeps y and not x: `out` may be x."""
    x = _array("x", x)
    axis = _axis(axis, x.ndim)
    _check_out(out, x)
    y = _store(_log_probabilities(_compute(x), axis), x, out)
    return y, Context(y=y, axis=axis)


def log_softmax_backward(dy: Array, ctx: Context, *, out: Array | None = None) -> InputGrad:
    """dx = dy - exp(y) * sum(dy), the sum along the axis. `out` receives dx."""
    dy = _gradient(dy, ctx.y)
    _check_out(out, ctx.y)
    d = _compute(dy)
    dx = d - np.exp(_compute(ctx.y)) * d.sum(axis=ctx.axis, keepdims=True)
    return InputGrad(_store(dx, ctx.y, out))


def cross_entropy(
    logits: Array,
    targets: Array,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    axis: int = 1,
) -> Any:
    """loss_i = -sum_c q_ic * weight_c * log softmax(logits_i)_c with q = (1 - s) * onehot(target_i) + s / C.

    logits have the C classes on `axis` (on the only axis, if there is one); targets are integers, of the logits' shape
    without it; weight has shape (C,); s is label_smoothing. Elements whose target is ignore_index cost nothing. "mean"
    divides the sum by sum_i weight[target_i] over the others (NaN if there are none, as torch), "sum" does not divide,
    "none" returns the array of costs. The loss is in the compute dtype: float64 for float64 logits, otherwise float32.

    Errors: TypeError for a dtype; ValueError for a shape, `axis`, `reduction`, label_smoothing outside [0, 1], or a
    target out of range, naming the first one.
    Source: Bishop, "Pattern Recognition and Machine Learning", 2006, equation 4.108; label smoothing: Szegedy et al.,
    "Rethinking the Inception Architecture", 2016, section 7.
    """
    loss, _ = cross_entropy_forward(logits, targets, weight, ignore_index, reduction, label_smoothing, axis=axis)
    return loss


def cross_entropy_forward(
    logits: Array,
    targets: Array,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    axis: int = 1,
) -> tuple[Any, Context]:
    """`cross_entropy`, and the context for `cross_entropy_backward`."""
    logits = _array("logits", logits)
    axis = 0 if logits.ndim == 1 and axis == 1 else _axis(axis, logits.ndim)
    classes = logits.shape[axis]
    class_weight = _parameter("weight", weight, logits, (classes,))
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing!r}")
    counted, index = _class_indices(targets, logits, axis, ignore_index)

    log_p = _log_probabilities(_compute(logits), axis)
    w = np.ones(classes, log_p.dtype) if class_weight is None else class_weight
    w_target = np.where(counted, w[index] if classes else 1, log_p.dtype.type(0))
    loss = -w_target * _pick(log_p, index, axis)
    if label_smoothing:
        spread = -(log_p * _broadcast(w, logits.ndim, axis)).sum(axis=axis)
        loss = (1 - label_smoothing) * loss + label_smoothing / classes * spread
    loss = np.where(counted, loss, log_p.dtype.type(0))
    total = w_target.sum()
    if reduction != "none":
        loss = loss.sum()
        if reduction == "mean":
            with np.errstate(invalid="ignore", divide="ignore"):
                loss = loss / total
    ctx = Context(
        logits=logits, axis=axis, index=index, counted=counted, class_weight=w, reduction=reduction, total=total,
        label_smoothing=label_smoothing,
    )  # fmt: skip
    return loss, ctx


def cross_entropy_backward(dy: Any, ctx: Context, *, out: Array | None = None) -> LogitsGrad:
    """dlogits_ic = dy_i * [(1 - s) * w_t * (p_ic - onehot_ic) + s / C * (p_ic * sum(w) - w_c)], p = softmax(logits).

    dy_i is dy for "sum", dy / sum_i w_t for "mean", dy[i] for "none"; ignored elements get 0. Unweighted and unsmoothed
    that is the familiar (p - onehot) / n. `out` receives dlogits.
    """
    logits, axis = ctx.logits, ctx.axis
    _check_out(out, logits)
    values = _compute(logits)
    classes = values.shape[axis]
    dy = np.asarray(dy, dtype=values.dtype)
    expected = ctx.index.shape if ctx.reduction == "none" else ()
    if dy.shape != expected:
        raise ValueError(f"dy: expected shape {expected} for reduction {ctx.reduction!r}, got {dy.shape}")
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.where(ctx.counted, dy / ctx.total if ctx.reduction == "mean" else dy, values.dtype.type(0))

    w = ctx.class_weight
    p = np.exp(_log_probabilities(values, axis))
    onehot = np.expand_dims(ctx.index, axis) == _broadcast(np.arange(classes), values.ndim, axis)
    w_target = np.expand_dims(w[ctx.index] if classes else ctx.index, axis)
    dlogits = w_target * (p - onehot)
    if ctx.label_smoothing:
        spread = p * w.sum() - _broadcast(w, values.ndim, axis)
        dlogits = (1 - ctx.label_smoothing) * dlogits + ctx.label_smoothing / classes * spread
    dlogits = np.where(np.expand_dims(ctx.counted, axis), dlogits * np.expand_dims(scale, axis), values.dtype.type(0))
    return LogitsGrad(_store(dlogits, logits, out))


def _log_probabilities(values: Array, axis: int) -> Array:
    z = _below_maximum(values, axis)
    return z - np.log(np.exp(z).sum(axis=axis, keepdims=True)) if z.size else z


def _pick(log_p: Array, index: Array, axis: int) -> Array:
    """log_p at the target's class."""
    if not log_p.size:
        return np.zeros(index.shape, log_p.dtype)
    return np.take_along_axis(log_p, np.expand_dims(index, axis), axis).squeeze(axis)


def _class_indices(targets: Any, logits: Array, axis: int, ignore_index: int) -> tuple[Array, Array]:
    """Which targets count, and their classes (0 where ignored)."""
    targets = np.asarray(targets)
    if targets.dtype.kind not in "iu":
        raise TypeError(f"targets: expected integer class indices, got {targets.dtype}")
    expected = logits.shape[:axis] + logits.shape[axis + 1 :]
    if targets.shape != expected:
        raise ValueError(f"targets: expected shape {expected}, the logits' without the class axis, got {targets.shape}")
    counted = targets != ignore_index
    bad = counted & ((targets < 0) | (targets >= logits.shape[axis]))
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"targets: expected 0 <= target < {logits.shape[axis]} or ignore_index {ignore_index}, "
            f"got {targets[where]} at index {where}"
        )
    return counted, np.where(counted, targets, 0)
