"""Standardisation and whitening of the inputs, as scikit-learn transformers.

Method: `Standardizer` takes its mean and variance from the same moments as the norms and merges chunks by Chan's
formula, so data that comes in pieces gives the statistics of one pass. `Whitening` takes the singular values of the
centred data through a QR factorisation (LAPACK, by NumPy) and never forms the covariance matrix, whose condition number
is the square. Both keep their statistics and compute in float64, whatever the data: a rounded mean would be an offset
in the result.

Both follow scikit-learn's conventions (`fit` returns self, learned attributes end in an underscore, `clone` and
`Pipeline` work) without needing it: only `__sklearn_tags__`, which nobody but scikit-learn calls, imports it.
"""

from __future__ import annotations

import importlib
import inspect
import math
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastnorm.functional import moments

__all__ = ["NotFittedError", "Standardizer", "Whitening"]

Float64 = NDArray[np.float64]


class NotFittedError(ValueError, AttributeError):
    """A transformer was used before `fit`. Bases as in scikit-learn, so that either kind of handler catches it."""


class _Transformer:
    """What scikit-learn expects of every transformer: parameters by name, a repr, tags."""

    n_features_in_: int

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        raise NotImplementedError

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        raise NotImplementedError

    def fit_transform(self, X: ArrayLike, y: object = None) -> NDArray[Any]:
        """`fit(X)`, then `transform(X)`."""
        return self.fit(X, y).transform(X)

    @classmethod
    def _parameters(cls) -> list[str]:
        return [name for name in inspect.signature(cls).parameters]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name; `deep` is scikit-learn's and changes nothing here."""
        return {name: getattr(self, name) for name in self._parameters()}

    def set_params(self, **params: Any) -> Self:
        """Set constructor arguments by name. ValueError for a name that is none."""
        for name in params:
            if name not in self._parameters():
                raise ValueError(f"{name}: expected a parameter of {type(self).__name__}, one of {self._parameters()}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.get_params().items())})"

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks of an estimator; it is there when it asks."""
        utils = importlib.import_module("sklearn.utils")
        return utils.Tags(
            estimator_type="transformer",
            target_tags=utils.TargetTags(required=False),
            transformer_tags=utils.TransformerTags(preserves_dtype=["float64", "float32", "float16"]),
            input_tags=utils.InputTags(),
        )

    def _require_fit(self) -> None:
        if not hasattr(self, "n_features_in_"):
            raise NotFittedError(f"{type(self).__name__}: expected a fitted transformer, call fit first")


class Standardizer(_Transformer):
    """z = (x - mean) / sqrt(var), one mean and biased variance per feature.

    Parameters: `with_mean` and `with_std` switch the two halves; `axis` names the axes that are pooled, 0 (the samples)
    by default, (0, 2, 3) for one mean per channel of NCHW images.

    X is (n_samples, n_features), or has more axes; every axis that is not pooled indexes features. Integers and all
    floating types are taken; results have X's type, float64 for integers. A feature that is constant, but for the
    rounding of its mean, is only centred.

    Attributes after `fit`: `mean_`, `var_`, `scale_` (float64, X's shape without the pooled axes), `n_samples_seen_`
    (values per feature), `n_features_in_` (length of X's second axis).

    Errors: TypeError for a type that is not a number; ValueError for a shape, for no samples, for NaN or infinity in
    `fit`, naming the first such feature; NotFittedError.

    Source: LeCun et al., "Efficient BackProp", 1998, section 4.3; Chan, Golub and LeVeque, "Updating formulae and a
    pairwise algorithm for computing sample variances", 1979, equation 2.1.
    """

    mean_: Float64
    var_: Float64
    scale_: Float64
    n_samples_seen_: int

    def __init__(self, *, with_mean: bool = True, with_std: bool = True, axis: int | tuple[int, ...] = 0) -> None:
        self.with_mean = with_mean
        self.with_std = with_std
        self.axis = axis

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Learn mean and variance from X alone, forgetting what was learned before."""
        return self._learn(X, None)

    def partial_fit(self, X: ArrayLike, y: object = None) -> Self:
        """Merge X into what was learned: n = n_a + n_b, d = mean_b - mean_a,

        mean = mean_a + d * n_b / n,   var = (n_a * var_a + n_b * var_b) / n + d^2 * n_a * n_b / n^2,

        which is the mean and variance of all the data in one pass, in any order and cut.
        """
        return self._learn(X, self if hasattr(self, "n_features_in_") else None)

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """(x - mean) / scale, in X's type. NaN and infinity pass through."""
        x, kept = self._checked(X)
        z = x.astype(np.float64)
        if self.with_mean:
            z -= self._along(self.mean_, x.ndim)
        if self.with_std:
            z /= self._along(self.scale_, x.ndim)
        return z.astype(kept, copy=False)

    def inverse_transform(self, X: ArrayLike) -> NDArray[Any]:
        """x = z * scale + mean, in X's type."""
        z, kept = self._checked(X)
        x = z.astype(np.float64)
        if self.with_std:
            x *= self._along(self.scale_, z.ndim)
        if self.with_mean:
            x += self._along(self.mean_, z.ndim)
        return x.astype(kept, copy=False)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """The names that came in, or x0, x1, ..."""
        self._require_fit()
        return _names(input_features, self.n_features_in_, "x")

    def _learn(self, X: ArrayLike, before: Standardizer | None) -> Self:
        x, _ = _samples(X)
        axes = self._axes(x.ndim)
        count = math.prod(x.shape[a] for a in axes)
        if count == 0:
            raise ValueError(f"X: expected at least one sample, got shape {x.shape}")
        mean, var = (np.asarray(s, np.float64) for s in moments(x.astype(np.float64, copy=False), axis=axes))
        if not (np.isfinite(mean) & np.isfinite(var)).all():
            first = tuple(int(i) for i in np.argwhere(~(np.isfinite(mean) & np.isfinite(var)))[0])
            raise ValueError(f"X: expected finite values, got NaN, infinity or an overflow in feature {first}")
        if before is not None:
            if mean.shape != before.mean_.shape:
                raise ValueError(f"X: expected features of shape {before.mean_.shape} as before, got {mean.shape}")
            n = before.n_samples_seen_ + count
            share, d = count / n, mean - before.mean_
            var = (1 - share) * before.var_ + share * var + d * d * (share * (1 - share))
            mean = before.mean_ + d * share
            count = n
        self.mean_, self.var_ = mean, var
        deviation = np.sqrt(var)
        self.scale_ = np.where(deviation > np.finfo(np.float64).eps * np.abs(mean), deviation, 1.0)
        self.n_samples_seen_ = count
        self.n_features_in_ = x.shape[1]
        return self

    def _axes(self, ndim: int) -> tuple[int, ...]:
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        if not axes or any(not -ndim <= a < ndim for a in axes) or len({a % ndim for a in axes}) != len(axes):
            raise ValueError(f"axis: expected distinct axes of an array with {ndim} axes, got {self.axis!r}")
        return tuple(sorted(a % ndim for a in axes))

    def _along(self, statistic: Float64, ndim: int) -> Float64:
        return np.expand_dims(statistic, self._axes(ndim))

    def _checked(self, X: ArrayLike) -> tuple[NDArray[Any], np.dtype[Any]]:
        self._require_fit()
        x, kept = _samples(X)
        axes = self._axes(x.ndim)
        features = tuple(n for a, n in enumerate(x.shape) if a not in axes)
        if features != self.mean_.shape:
            raise ValueError(f"X: expected features of shape {self.mean_.shape} as in fit, got {features}")
        return x, kept


class Whitening(_Transformer):
    """z = W (x - mean) with cov(z) = I: with cov(x) = V diag(lambda) V', W = D V' (PCA) or V D V' (ZCA), D = (lambda +
    eps)^-1/2.

    PCA's z are the principal components, largest first, divided by their deviations; ZCA turns them back into the axes
    of x and is, of all whitenings, the one whose output is closest to its (centred) input.

    Parameters: `kind`, "pca" or "zca"; `n_components`, how many of the largest components to keep (None: all that X
    has; PCA's output then has so many columns, ZCA's always has those of X); `eps`, added to the variances inside the
    root, so that directions without variance are not blown up. With eps = 0 such directions are an error.

    X is (n_samples, n_features), integers or any floating type; results have X's type, float64 for integers. The
    covariance is that of n - 1, as `numpy.cov` and scikit-learn's PCA.

    Attributes after `fit`: `mean_` (d,), `components_` (k, d) the rows of V' (largest entry of each positive),
    `explained_variance_` (k,) lambda, `matrix_` W, `inverse_matrix_` its (pseudo-)inverse, `n_components_`,
    `n_samples_`, `n_features_in_`.

    Errors: TypeError for a type that is not a number; ValueError for a shape, fewer than two samples, NaN or infinity,
    a parameter, or a variance of zero with eps = 0; NotFittedError.

    Source: Kessy, Lewin and Strimmer, "Optimal whitening and decorrelation", 2018, sections 3.1 and 3.4; Bell and
    Sejnowski, "The independent components of natural scenes are edge filters", 1997.
    """

    mean_: Float64
    components_: Float64
    explained_variance_: Float64
    matrix_: Float64
    inverse_matrix_: Float64
    n_components_: int
    n_samples_: int

    def __init__(self, kind: Literal["pca", "zca"] = "pca", n_components: int | None = None, eps: float = 1e-5) -> None:
        self.kind = kind
        self.n_components = n_components
        self.eps = eps

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Learn mean, principal axes and variances."""
        if self.kind not in ("pca", "zca"):
            raise ValueError(f"kind: expected 'pca' or 'zca', got {self.kind!r}")
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise ValueError(f"eps: expected a finite number >= 0, got {self.eps!r}")
        x, _ = self._table(X)
        n, d = x.shape
        if n < 2 or d < 1:
            raise ValueError(f"X: expected at least two samples and one feature, got shape {x.shape}")
        k = min(n, d) if self.n_components is None else self.n_components
        if not 1 <= k <= min(n, d):
            raise ValueError(f"n_components: expected a number from 1 to {min(n, d)} for shape {x.shape}, got {k!r}")
        x = x.astype(np.float64, copy=False)
        mean = np.asarray(moments(x, axis=0)[0], np.float64)
        if not np.isfinite(mean).all():
            raise ValueError(
                f"X: expected finite values, got NaN or infinity in feature {int(np.argmin(np.isfinite(mean)))}"
            )

        _, sigma, axes = np.linalg.svd(np.linalg.qr(x - mean, mode="r"), full_matrices=False)
        variance = sigma[:k] ** 2 / (n - 1)
        axes = axes[:k] * _signs(axes[:k])
        rank = int((sigma > sigma[0] * max(n, d) * np.finfo(np.float64).eps).sum())
        if self.eps == 0 and k > rank:
            raise ValueError(
                f"eps: expected a number > 0, the data vary in {rank} directions only; or pass n_components <= {rank}"
            )
        deviation = np.sqrt(variance + self.eps)
        matrix, inverse = axes / deviation[:, None], axes.T * deviation
        if self.kind == "zca":
            matrix, inverse = axes.T @ matrix, inverse @ axes
        self.mean_, self.components_, self.explained_variance_ = mean, axes, variance
        self.matrix_, self.inverse_matrix_ = matrix, inverse
        self.n_components_, self.n_samples_, self.n_features_in_ = k, n, d
        return self

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """W (x - mean), in X's type: (n, n_components) for PCA, X's shape for ZCA."""
        self._require_fit()
        x, kept = self._table(X)
        if x.shape[1] != self.n_features_in_:
            raise ValueError(f"X: expected {self.n_features_in_} features as in fit, got {x.shape[1]}")
        z = (x.astype(np.float64, copy=False) - self.mean_) @ self.matrix_.T
        return z.astype(kept, copy=False)

    def inverse_transform(self, X: ArrayLike) -> NDArray[Any]:
        """x = W^-1 z + mean; where components were left out, the projection on those kept."""
        self._require_fit()
        z, kept = self._table(X)
        if z.shape[1] != self.matrix_.shape[0]:
            raise ValueError(f"X: expected {self.matrix_.shape[0]} features as from transform, got {z.shape[1]}")
        x = z.astype(np.float64, copy=False) @ self.inverse_matrix_.T + self.mean_
        return x.astype(kept, copy=False)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """pca0, pca1, ...; for ZCA, whose outputs are the inputs' axes, the names that came in or x0, x1, ..."""
        self._require_fit()
        if self.kind == "zca":
            return _names(input_features, self.n_features_in_, "x")
        return _names(None, self.n_components_, "pca")

    @staticmethod
    def _table(X: ArrayLike) -> tuple[NDArray[Any], np.dtype[Any]]:
        x, kept = _samples(X)
        if x.ndim != 2:
            raise ValueError(
                f"X: expected 2 axes (samples, features), got shape {x.shape}; reshape(len(X), -1) makes them"
            )
        return x, kept


def _samples(X: ArrayLike) -> tuple[NDArray[Any], np.dtype[Any]]:
    """X as an array with at least two axes, and the type of the result."""
    if isinstance(X, np.ma.MaskedArray):
        raise TypeError("X: expected a plain array, got a masked array")
    x = np.asarray(X)
    floating = x.dtype.kind == "f" or x.dtype.name == "bfloat16"
    if not floating and x.dtype.kind not in "biu":
        raise TypeError(f"X: expected integers or floating-point numbers, got {x.dtype}")
    if x.ndim < 2:
        raise ValueError(
            f"X: expected 2 axes (samples, features), got shape {x.shape}; reshape(-1, 1) makes one feature"
        )
    return x, x.dtype if floating else np.dtype(np.float64)


def _signs(axes: Float64) -> Float64:
    """The sign that makes the largest entry of each row positive, so that equal data give equal axes."""
    largest = np.argmax(np.abs(axes), axis=1)
    return np.where(axes[np.arange(len(axes)), largest] < 0, -1.0, 1.0)[:, None]


def _names(given: Any, count: int, prefix: str) -> NDArray[Any]:
    names = [f"{prefix}{i}" for i in range(count)] if given is None else list(given)
    if len(names) != count:
        raise ValueError(f"input_features: expected {count} names, got {len(names)}")
    return np.asarray(names, dtype=object)
