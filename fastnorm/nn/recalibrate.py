"""Running statistics measured anew over given data, in the two ways that the literature defines them.

"exact": the mean and variance of all the data pooled, as one training pass over one big batch would give. The statistics of a
norm depend on those of the norms before it, so the norms are measured one after another, in the order in which they run: each
pass over the batches normalises everything before with the pooled statistics already found and stops at the norm it measures.
Batches are pooled by Chan's formula, in float64. "paper": algorithm 2 of Ioffe and Szegedy, one pass in which each batch is
normalised with its own statistics, then the mean of the batch means and of the unbiased batch variances m/(m − 1)·var.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastnorm import functional as F

from .module import Array, Module, no_grad
from .normalization import _BatchNorm

__all__ = ["recalibrate"]


class _Measured(Exception):
    """The norm being measured has been reached: what comes after it is not needed in this pass."""


class _Pool:
    """Count, mean and biased variance of what one norm has seen, per channel, in float64."""

    def __init__(self, norm: _BatchNorm) -> None:
        self.norm = norm
        self.count = 0
        self.batches = 0
        self.mean = np.zeros(norm.num_features)
        self.var = np.zeros(norm.num_features)

    def moments(self, x: Array) -> tuple[int, Array, Array]:
        """(elements per channel, mean, biased variance) of one input."""
        self.norm._check(x)
        axes = tuple(axis for axis in range(x.ndim) if axis != self.norm.axis % x.ndim)
        mean, var = F.moments(x.astype(np.float64), axes)
        return x.size // self.norm.num_features, mean, var

    def merge(self, x: Array) -> None:
        """Chan's formula: the moments of all so far and `x` together."""
        if x.size == 0:
            return
        n, mean, var = self.moments(x)
        total = self.count + n
        delta, share = mean - self.mean, n / total
        self.mean += delta * share
        self.var += (var - self.var) * share + delta * delta * (share * (1.0 - share))
        self.count, self.batches = total, self.batches + 1

    def average(self, x: Array) -> None:
        """Running means of the batch means and the unbiased batch variances."""
        if x.size == 0:
            return
        n, mean, var = self.moments(x)
        _require_two(n)
        self.batches += 1
        self.mean += (mean - self.mean) / self.batches
        self.var += (var * (n / (n - 1)) - self.var) / self.batches

    def normalise(self, x: Array, residual: Array | None) -> Array:
        """The norm's output under the pooled moments, computed in float64."""
        norm = self.norm
        gamma, beta = (None if p is None else p.astype(np.float64) for p in norm._gamma_beta())
        y = F.batch_norm(
            x.astype(np.float64), self.mean, self.var, gamma, beta, eps=norm.eps, axis=norm.axis,
            activation=norm.activation, residual=None if residual is None else residual.astype(np.float64),
        )  # fmt: skip
        return y.astype(x.dtype)


def recalibrate(model: Module, batches: Iterable[Any], how: str = "exact") -> None:
    """Replace the running statistics of every tracked batch norm in `model` by those of the data in `batches`.

    `batches`: arrays, or tuples that begin with one, as a training loop has them. `how`: "exact" (needs one pass per norm, so
    `batches` must be a list or another iterable that can be repeated) or "paper" (one pass). All other layers are in
    evaluation mode meanwhile (no dropout). running_var gets the unbiased variance, num_batches_tracked the number of batches.
    Modes are restored; if anything fails, no statistics have changed.

    A norm that runs several times in one pass is measured by "exact" at its first run, by "paper" at all of them.

    Raises ValueError for another `how`, no data, one value per channel, statistics that are not finite, or batches that cannot
    be repeated.
    """
    if how not in ("exact", "paper"):
        raise ValueError(f"recalibrate: how must be 'exact' or 'paper', got {how!r}")
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    if how == "exact" and len(norms) > 1 and iter(batches) is batches:
        raise ValueError("recalibrate: 'exact' passes over the batches once per norm; give a list, not a generator")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with no_grad():
            pools = (_exact if how == "exact" else _paper)(model, norms, batches)
    finally:
        for module, mode in modes:
            module.training = mode
    for pool in pools:
        dtype = np.float32 if pool.norm.running_mean is None else pool.norm.running_mean.dtype
        with np.errstate(over="ignore"):
            if not (np.isfinite(pool.mean.astype(dtype)).all() and np.isfinite(pool.var.astype(dtype)).all()):
                raise ValueError(
                    f"recalibrate: {pool.norm} saw data whose statistics are not finite; nothing was changed"
                )
    for pool in pools:
        norm = pool.norm
        assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
        norm.running_mean[...] = pool.mean
        norm.running_var[...] = pool.var
        norm.num_batches_tracked[...] = pool.batches


def _exact(model: Module, norms: list[_BatchNorm], batches: Iterable[Any]) -> list[_Pool]:
    done: dict[int, _Pool] = {}
    while len(done) < len(norms):
        current: list[_Pool] = []

        def forward(norm: _BatchNorm, x: Array, residual: Array | None, current: list[_Pool] = current) -> Array:
            if id(norm) in done:
                return done[id(norm)].normalise(x, residual)
            if not current:
                current.append(_Pool(norm))
            if current[0].norm is not norm:
                raise RuntimeError("recalibrate: the norms ran in another order for another batch; 'paper' allows that")
            current[0].merge(x)
            raise _Measured

        _run(model, norms, batches, forward)
        if not current:  # the norms left are not on the path of the data
            break
        pool = current[0]
        _require_two(pool.count)
        done[id(pool.norm)] = pool
    for pool in done.values():
        pool.var *= pool.count / (pool.count - 1)
    return list(done.values())


def _paper(model: Module, norms: list[_BatchNorm], batches: Iterable[Any]) -> list[_Pool]:
    pools = {id(norm): _Pool(norm) for norm in norms}

    def forward(norm: _BatchNorm, x: Array, residual: Array | None) -> Array:
        pools[id(norm)].average(x)
        gamma, beta = norm._gamma_beta()
        return F.batch_norm(
            x,
            None,
            None,
            gamma,
            beta,
            True,
            eps=norm.eps,
            axis=norm.axis,
            activation=norm.activation,
            residual=residual,
        )

    _run(model, norms, batches, forward)
    return [pool for pool in pools.values() if pool.batches]


def _run(
    model: Module,
    norms: list[_BatchNorm],
    batches: Iterable[Any],
    forward: Callable[[_BatchNorm, Array, Array | None], Array],
) -> None:
    """The model over every batch, with `forward` in place of the norms' own."""
    seen = False
    with _replaced(norms, forward):
        for batch in batches:
            x = batch[0] if isinstance(batch, (tuple, list)) else batch
            seen = seen or x.size > 0
            try:
                model(x)
            except _Measured:
                continue
    if not seen:
        raise ValueError("recalibrate: batches holds no data; nothing was changed")


@contextmanager
def _replaced(norms: list[_BatchNorm], forward: Callable[[_BatchNorm, Array, Array | None], Array]) -> Iterator[None]:
    def bound(norm: _BatchNorm) -> Callable[..., Array]:
        return lambda x, residual=None: forward(norm, x, residual)

    for norm in norms:
        vars(norm)["forward"] = bound(norm)
    try:
        yield
    finally:
        for norm in norms:
            vars(norm).pop("forward", None)


def _require_two(count: int) -> None:
    if count < 2:
        raise ValueError(
            f"recalibrate: a norm saw {count} value per channel; a variance needs at least 2; nothing was changed"
        )
