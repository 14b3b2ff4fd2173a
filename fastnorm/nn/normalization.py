"""Norms over the batch as layers: parameters, running statistics and modes around the functions of `fastnorm.functional`.

Names, arguments and state of torch, with `activation="relu"` to fuse a ReLU, `axis` for channels-last arrays, and for batch norm
`init_running_from_first_batch` and a residual added before the activation. All arithmetic is in the kernels; a layer
decides only which statistics they use: the batch's when training, or when none are tracked; otherwise the running ones, which
backward then treats as constants.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastnorm import functional as F

from ._common import Array, positive
from .module import Module, Parameter

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "SwitchableNorm2d",
]


class _Norm(Module):
    """What all norms share: gamma of ones and beta of zeros, and how their gradients are added."""

    weight: Parameter | None = None
    bias: Parameter | None = None

    def _affine(self, shape: tuple[int, ...], weight: bool, bias: bool, dtype: DTypeLike) -> None:
        self.weight = Parameter(np.ones(shape, dtype)) if weight else None
        self.bias = Parameter(np.zeros(shape, dtype)) if bias else None

    def _gamma_beta(self) -> tuple[Array | None, Array | None]:
        return (None if self.weight is None else self.weight.data), (None if self.bias is None else self.bias.data)

    def _accumulate(self, grads: Any) -> Array:
        if self.weight is not None:
            self.weight.accumulate(grads.dweight)
        if self.bias is not None:
            self.bias.accumulate(grads.dbias)
        dx: Array = grads.dx
        return dx


def _eps(name: str, eps: float) -> float:
    if not isinstance(eps, (int, float, np.floating)) or not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"{name}: eps must be a finite number of at least 0, got {eps!r}")
    return float(eps)


class _TrackingNorm(_Norm):
    """A norm over channels that may keep running statistics: what batch, instance and switchable norm share."""

    running_mean: Array | None
    running_var: Array | None
    num_batches_tracked: Array | None
    _ndims: tuple[int, ...] = ()

    def __init__(
        self,
        num_features: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        track_running_stats: bool,
        dtype: DTypeLike,
        axis: int,
        activation: str | None,
        init_running_from_first_batch: bool = False,
    ) -> None:
        name = type(self).__name__
        self.num_features = positive(name, "num_features", num_features)
        self.eps = _eps(name, eps)
        if momentum is not None and not 0.0 <= momentum <= 1.0:
            raise ValueError(f"{name}: momentum must be None or in [0, 1], got {momentum!r}")
        if activation not in (None, "relu"):
            raise ValueError(f"{name}: activation must be None or 'relu', got {activation!r}")
        if init_running_from_first_batch and not track_running_stats:
            raise ValueError(f"{name}: init_running_from_first_batch needs track_running_stats=True")
        self.momentum = momentum
        self.affine = bool(affine)
        self.track_running_stats = bool(track_running_stats)
        self.axis = axis
        self.activation = activation
        self.init_running_from_first_batch = bool(init_running_from_first_batch)
        self._affine((num_features,), affine, affine, dtype)
        tracked = self.track_running_stats
        self.register_buffer("running_mean", np.zeros(num_features, dtype) if tracked else None)
        self.register_buffer("running_var", np.ones(num_features, dtype) if tracked else None)
        self.register_buffer("num_batches_tracked", np.zeros((), np.int64) if tracked else None)

    def reset_running_stats(self) -> None:
        """Running mean 0, variance 1, no batches seen."""
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.running_mean.fill(0)
            self.running_var.fill(1)
            self.num_batches_tracked.fill(0)

    def _check(self, x: Array) -> None:
        name = type(self).__name__
        if not isinstance(x, np.ndarray):
            raise TypeError(f"{name}: x must be a numpy array, got {type(x).__name__}")
        if x.ndim not in self._ndims:
            raise ValueError(f"{name}: x must have {' or '.join(map(str, self._ndims))} axes, got shape {x.shape}")
        if not -x.ndim <= self.axis < x.ndim or x.shape[self.axis] != self.num_features:
            raise ValueError(
                f"{name}: x must have {self.num_features} channels on axis {self.axis}, got shape {x.shape}"
            )

    def _uses_batch(self) -> bool:
        """Whether the statistics of the input are used rather than the running ones."""
        return self.training or not self.track_running_stats

    def _running(self) -> tuple[Array | None, Array | None, float]:
        """(running mean, running variance, the momentum of this forward).

        The momentum is 1/(batches so far + 1) for the cumulative average, and 1 where the first batch replaces the initial values.
        """
        if self.num_batches_tracked is None:
            return None, None, 0.0
        seen = int(self.num_batches_tracked)
        if seen == 0 and self.init_running_from_first_batch:
            momentum = 1.0
        elif self.momentum is None:
            momentum = 1.0 / (seen + 1)
        else:
            momentum = self.momentum
        return self.running_mean, self.running_var, momentum

    def _count_batch(self, x: Array) -> None:
        """One more batch seen, if it was tracked and not empty; called after the kernel, so that a failed one does not count."""
        if self.training and self.num_batches_tracked is not None and x.size:
            self.num_batches_tracked += 1

    def extra_repr(self) -> str:
        """The arguments that matter, as torch shows them."""
        text = f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}"
        if self.activation:
            text += f", activation={self.activation!r}"
        return f"{text}, track_running_stats={self.track_running_stats}"


class _BatchNorm(_TrackingNorm):
    """Batch norm of any rank; the public classes say which."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        init_running_from_first_batch: bool = False,
        activation: str | None = None,
        axis: int = 1,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            dtype,
            axis,
            activation,
            init_running_from_first_batch,
        )

    def forward(self, x: Array, residual: Array | None = None) -> Array:
        """activation(norm(x) + residual); in training the running statistics move."""
        self._check(x)
        mean, var, momentum = self._running()
        gamma, beta = self._gamma_beta()
        training = self._uses_batch()
        y, ctx = F.batch_norm_forward(
            x, mean, var, gamma, beta, training, momentum, self.eps,
            axis=self.axis, activation=self.activation, residual=residual,
        )  # fmt: skip
        self._count_batch(x)
        self.save_for_backward((ctx, residual is not None))
        return y

    def backward(self, dy: Array) -> Any:
        """dx, or (dx, dresidual) when the forward was given a residual."""
        ctx, had_residual = self.saved_for_backward()
        grads = F.batch_norm_backward(dy, ctx)
        dx = self._accumulate(grads)
        return (dx, grads.dresidual) if had_residual else dx


class BatchNorm1d(_BatchNorm):
    """y = gamma·(x − mean)/sqrt(var + eps) + beta, mean and variance per channel over the batch; x: (N, C) or (N, C, L).

    In training the batch's own (biased) statistics, and running ← (1 − momentum)·running + momentum·batch with the unbiased
    variance; `momentum=None` averages all batches alike; `init_running_from_first_batch` lets the first replace the initial 0
    and 1. In evaluation the running statistics. weight, bias, running_mean, running_var: (C,); num_batches_tracked: int64.
    `activation="relu"` is fused; `layer(x, residual=r)` adds r before it, and backward returns (dx, dr).

    Raises TypeError or ValueError for inputs that do not fit, ValueError for one value per channel in training. Ioffe and
    Szegedy 2015.
    """

    _ndims = (2, 3)


class BatchNorm2d(_BatchNorm):
    """`BatchNorm1d` for x: (N, C, H, W): mean and variance per channel over N, H and W."""

    _ndims = (4,)


class BatchNorm3d(_BatchNorm):
    """`BatchNorm1d` for x: (N, C, D, H, W): mean and variance per channel over N, D, H and W."""

    _ndims = (5,)


class _InstanceNorm(_TrackingNorm):
    """Instance norm of any rank; the public classes say which."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        *,
        activation: str | None = None,
        axis: int = 1,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, dtype, axis, activation)

    def forward(self, x: Array) -> Array:
        """activation(norm(x)); in training the running statistics, where tracked, move."""
        self._check(x)
        mean, var, momentum = self._running()
        gamma, beta = self._gamma_beta()
        y, ctx = F.instance_norm_forward(
            x,
            mean,
            var,
            gamma,
            beta,
            self._uses_batch(),
            momentum,
            self.eps,
            axis=self.axis,
            activation=self.activation,
        )
        self._count_batch(x)
        self.save_for_backward(ctx)
        return y

    def backward(self, dy: Array) -> Array:
        """dx; adds to the gradients of gamma and beta."""
        return self._accumulate(F.instance_norm_backward(dy, self.saved_for_backward()))


class InstanceNorm1d(_InstanceNorm):
    """y = gamma·(x − mean)/sqrt(var + eps) + beta, mean and variance per sample and channel over space; x: (N, C, L).

    As in torch no parameters and no running statistics unless asked for. Tracked ones average over the samples of a batch; unlike
    torch's layer, this one counts batches, so `momentum=None` is the cumulative average here too. Ulyanov et al. 2016.
    """

    _ndims = (3,)


class InstanceNorm2d(_InstanceNorm):
    """`InstanceNorm1d` for x: (N, C, H, W)."""

    _ndims = (4,)


class InstanceNorm3d(_InstanceNorm):
    """`InstanceNorm1d` for x: (N, C, D, H, W)."""

    _ndims = (5,)


class SwitchableNorm2d(_TrackingNorm):
    """y = gamma·(x − Σ w_k·mean_k)/sqrt(Σ w'_k·var_k + eps) + beta over k in (instance, layer, batch); x: (N, C, H, W).

    w = softmax(mean_logits), w' = softmax(var_logits); both (3,), ones at the start, in the order instance, layer, batch. The
    batch part follows training and evaluation as in batch norm. weight, bias, running_mean, running_var: (C,). Luo et al. 2019.
    """

    mean_logits: Parameter
    var_logits: Parameter
    _ndims = (4,)

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        init_running_from_first_batch: bool = False,
        axis: int = 1,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, dtype, axis, None, init_running_from_first_batch
        )
        self.mean_logits = Parameter(np.ones(3, dtype))
        self.var_logits = Parameter(np.ones(3, dtype))

    def forward(self, x: Array) -> Array:
        """norm(x); in training the running statistics of the batch part move."""
        self._check(x)
        mean, var, momentum = self._running()
        gamma, beta = self._gamma_beta()
        y, ctx = F.switchable_norm_forward(
            x, self.mean_logits.data, self.var_logits.data, mean, var, gamma, beta,
            self._uses_batch(), momentum, self.eps, axis=self.axis,
        )  # fmt: skip
        self._count_batch(x)
        self.save_for_backward(ctx)
        return y

    def backward(self, dy: Array) -> Array:
        """dx; adds to the gradients of gamma, beta and both sets of logits."""
        grads = F.switchable_norm_backward(dy, self.saved_for_backward())
        self.mean_logits.accumulate(grads.dmean_logits)
        self.var_logits.accumulate(grads.dvar_logits)
        return self._accumulate(grads)
