"""Switchable norm: the statistics of instance, layer and batch norm, mixed by weights that are learned.

Only those of instances are taken from x; layer and batch statistics follow from them by merging (`_merge_moments`).
"""

from __future__ import annotations

import numpy as np

from ._arithmetic import _affine, _below_maximum, _mean, _moments, _scale, _update_running
from ._checks import _array, _channel_axis, _check_out, _check_running, _check_scalars, _gradient, _parameter
from ._shapes import _all_but, _broadcast, _compute, _count, _given, _statistic, _store
from ._types import Array, Context, SwitchableNormGrads

__all__ = ["switchable_norm", "switchable_norm_backward", "switchable_norm_forward"]


def switchable_norm(
    x: Array,
    mean_logits: Array,
    var_logits: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    out: Array | None = None,
) -> Array:
    """y = gamma * (x - mu) / sqrt(var + eps) + beta with mu = sum_k w_k mu_k, var = sum_k w'_k var_k, k in (IN, LN,
    BN).

    w = softmax(mean_logits), w' = softmax(var_logits), each of three logits, in the order instance, layer, batch. The
    instance moments are taken from x; the others follow from them without cancellation,

        mu_ln = mean_c(mu_in),  var_ln = mean_c(var_in) + mean_c((mu_in - mu_ln)^2),  and likewise BN over the samples.

    The batch part follows `training` as `batch_norm`, running statistics included (unbiased variance).

    x has samples on axis 0 and channels on `axis`; weight, bias and running statistics have shape (C,), the logits
    (3,). dtypes and errors as `batch_norm`.
    Source: Luo et al., "Differentiable Learning-to-Normalize via Switchable Normalization", 2018, equations 2 to 5.
    """
    _check_out(out, _array("x", x))
    y, _ = switchable_norm_forward(
        x, mean_logits, var_logits, running_mean, running_var, weight, bias, training, momentum, eps, axis=axis
    )
    return _store(y, y, out)


def switchable_norm_forward(
    x: Array,
    mean_logits: Array,
    var_logits: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    out: Array | None = None,
) -> tuple[Array, Context]:
    """`switchable_norm`, and the context for `switchable_norm_backward`; `out` may not overlap x."""
    x = _array("x", x)
    channel = _channel_axis(axis, x.ndim)
    space = _all_but(x.ndim, 0, channel)
    m = _count(x, (0, *space))
    _check_scalars(eps, momentum)
    per_channel = (x.shape[channel],)
    w_mean = _mixing_weights("mean_logits", mean_logits, x)
    w_var = _mixing_weights("var_logits", var_logits, x)
    gamma = _parameter("weight", weight, x, per_channel)
    beta = _parameter("bias", bias, x, per_channel)
    _check_running(running_mean, running_var, x, per_channel, needed=not training, written=training)
    _check_out(out, x, x)
    if training and m == 1:
        raise ValueError(f"x: expected more than 1 value per channel when training, got shape {x.shape}")

    values = _compute(x)
    mu_in, var_in = _moments(values, space)
    mu_ln, var_ln = _merge_moments(mu_in, var_in, (channel,))
    if training:
        mu_bn, var_bn = _merge_moments(mu_in, var_in, (0,))
    else:
        assert running_mean is not None and running_var is not None
        mu_bn = _broadcast(_compute(running_mean), x.ndim, channel)
        var_bn = _broadcast(_compute(running_var), x.ndim, channel)
    means, variances = (mu_in, mu_ln, mu_bn), (var_in, var_ln, var_bn)
    mean = mu_in + w_mean[1] * (mu_ln - mu_in) + w_mean[2] * (mu_bn - mu_in)  # rounded weights do not add up to 1
    var = sum(w * v for w, v in zip(w_var, variances, strict=True))
    rstd = 1 / np.sqrt(var + eps)
    xhat = (values - mean) * rstd
    y = _store(_affine(xhat, _broadcast(gamma, x.ndim, channel), _broadcast(beta, x.ndim, channel)), x, out)
    if training and x.size:
        _update_running(running_mean, mu_bn, momentum)
        _update_running(running_var, var_bn * (m / (m - 1)), momentum)
    instances = (x.shape[0], x.shape[channel])
    ctx = Context(
        x=x, weight=weight, bias=bias, axis=channel, space=space, training=training, eps=eps,
        means=means, variances=variances, w_mean=w_mean, w_var=w_var,
        mean=_statistic(mean, instances), rstd=_statistic(rstd, instances),
    )  # fmt: skip
    return y, ctx


def switchable_norm_backward(dy: Array, ctx: Context, *, out: Array | None = None) -> SwitchableNormGrads:
    """Through the mixed moments: with g = dy * gamma, summed over space,

        dmu = -rstd * sum(g),   dvar = -1/2 * rstd^2 * sum(g * xhat)                          per sample and channel,
        dx  = rstd * g + sum_k [ w_k S_k(dmu) + 2 * w'_k S_k(dvar) * (x - mu_k) ] / m_k,
        dmean_logits_k = w_k * sum(dmu * (mu_k - mu)),  dvar_logits_k = w'_k * sum(dvar * (var_k - var)),

    S_k summing over what moment k shares beyond space: nothing (IN), channels (LN), samples (BN). Not training, the
    batch moments are constants and their term of dx falls away. dgamma, dbeta as `batch_norm_backward`. `out` receives
    dx.
    """
    x, channel, space = ctx.x, ctx.axis, ctx.space
    dy = _gradient(dy, x)
    _check_out(out, x)
    dy = _compute(dy)
    values = _compute(x)
    mean, rstd = (_broadcast(s.astype(dy.dtype), x.ndim, 0, channel) for s in (ctx.mean, ctx.rstd))
    xhat = (values - mean) * rstd
    others = _all_but(x.ndim, channel)
    dbeta, dgamma = dy.sum(axis=others), (dy * xhat).sum(axis=others)
    g = _scale(dy, _broadcast(_compute(ctx.weight), x.ndim, channel))
    dmu = -rstd * g.sum(axis=space, keepdims=True)
    dvar = -0.5 * rstd**2 * (g * xhat).sum(axis=space, keepdims=True)

    dx = rstd * g
    shared: tuple[tuple[int, ...], ...] = ((), (channel,), (0,))
    for k in range(3 if ctx.training else 2):
        m_k = max(_count(x, (*space, *shared[k])), 1)
        dmu_k = ctx.w_mean[k] * dmu.sum(axis=shared[k], keepdims=True) / m_k
        dvar_k = ctx.w_var[k] * dvar.sum(axis=shared[k], keepdims=True) / m_k
        dx += dmu_k + 2 * dvar_k * (values - ctx.means[k])
    var = sum(w * v for w, v in zip(ctx.w_var, ctx.variances, strict=True))
    dmean_logits = np.array([w * (dmu * (mu - mean)).sum() for w, mu in zip(ctx.w_mean, ctx.means, strict=True)])
    dvar_logits = np.array([w * (dvar * (v - var)).sum() for w, v in zip(ctx.w_var, ctx.variances, strict=True)])
    return SwitchableNormGrads(
        _store(dx, x, out), _given(dgamma, ctx.weight), _given(dbeta, ctx.bias), dmean_logits, dvar_logits
    )


def _mixing_weights(name: str, logits: Array, x: Array) -> Array:
    values = _parameter(name, logits, x, (3,))
    if values is None:
        raise TypeError(f"{name}: expected an array of shape (3,), got None")
    e = np.exp(_below_maximum(values, 0))
    return e / e.sum()


def _merge_moments(mean: Array, var: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Moments of the union of sets of equal size: the variance within plus the variance between."""
    merged, between = _moments(mean, axes)
    return merged, _mean(var, axes) + between
