"""Standardisation and whitening do what their formulas say, in one pass or in pieces, and behave as scikit-learn's do.

The whitening theorems are tested as such: the covariance of the output is the identity; no rotation of it is closer to
the centred input than ZCA's; `inverse_transform` undoes `transform`.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from fastnorm.preprocessing import NotFittedError, Standardizer, Whitening


def close(actual: Any, expected: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(actual, expected, tolerance, tolerance)


@pytest.fixture
def data() -> np.ndarray:
    """500 correlated samples of 6 features with different means and scales."""
    rng = np.random.default_rng(1)
    return rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6)) + np.array([0, 1, -5, 100, 1e3, 2])


# --------------------------------------------------------------------------------------------------------- standardizer


def test_standardized_features_have_mean_0_and_variance_1(data: np.ndarray) -> None:
    s = Standardizer()
    z = s.fit_transform(data)
    close(z.mean(axis=0), np.zeros(6), 1e-11)
    close(z.var(axis=0), np.ones(6), 1e-11)
    close(s.mean_, data.mean(axis=0))
    close(s.var_, data.var(axis=0))
    close(s.scale_, data.std(axis=0))
    assert s.n_samples_seen_ == 500 and s.n_features_in_ == 6
    close(s.inverse_transform(z), data, 1e-12)


@pytest.mark.parametrize("cuts", [[1, 2, 3], [250], [100, 100, 499], [7, 11, 13, 400]])
def test_partial_fit_in_pieces_is_fit(data: np.ndarray, cuts: list[int]) -> None:
    whole, pieces = Standardizer().fit(data), Standardizer()
    for piece in np.split(data, cuts):
        if len(piece):
            assert pieces.partial_fit(piece) is pieces
    close(pieces.mean_, whole.mean_, 1e-14)
    close(pieces.var_, whole.var_, 1e-13)
    assert pieces.n_samples_seen_ == whole.n_samples_seen_


def test_partial_fit_does_not_cancel() -> None:
    """Means of 1e9 times the deviation, sample by sample: a sum of squares would have no digit of the variance left."""
    rng = np.random.default_rng(2)
    x = 1e9 + rng.standard_normal((300, 2))
    s = Standardizer()
    for row in x:
        s.partial_fit(row[None])
    close(s.var_, (x - 1e9).var(axis=0), 1e-6)


def test_merging_pieces_of_different_means_counts_the_variance_between_them() -> None:
    s = Standardizer().partial_fit(np.zeros((3, 1))).partial_fit(np.full((1, 1), 4.0))
    assert s.mean_[0] == 1.0 and s.var_[0] == 3.0


def test_fit_forgets(data: np.ndarray) -> None:
    s = Standardizer().fit(data + 7).fit(data)
    close(s.mean_, data.mean(axis=0))
    assert s.n_samples_seen_ == 500


def test_constant_features_are_only_centred() -> None:
    x = np.column_stack([np.full(9, 1e10), np.arange(9.0), np.full(9, 0.1)])
    s = Standardizer()
    for piece in (x[:2], x[2:5], x[5:]):
        s.partial_fit(piece)
    z = s.transform(x)
    assert np.abs(z[:, [0, 2]] / x[:, [0, 2]]).max() <= np.finfo(np.float64).eps
    np.testing.assert_array_equal(s.scale_[[0, 2]], 1)
    close(z[:, 1].var(), 1.0)


@pytest.mark.parametrize("with_mean", [True, False])
@pytest.mark.parametrize("with_std", [True, False])
def test_halves_of_the_transform(data: np.ndarray, with_mean: bool, with_std: bool) -> None:
    s = Standardizer(with_mean=with_mean, with_std=with_std)
    expected = (data - data.mean(axis=0) * with_mean) / (data.std(axis=0) if with_std else 1)
    z = s.fit_transform(data)
    close(z, expected, 1e-11)
    close(s.inverse_transform(z), data, 1e-12)


def test_one_mean_per_channel_of_images() -> None:
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((20, 3, 4, 5)) * np.array([1, 2, 3]).reshape(3, 1, 1) + 5).astype(np.float32)
    s = Standardizer(axis=(0, 2, 3))
    z = s.partial_fit(x[:7]).partial_fit(x[7:]).transform(x)
    assert s.mean_.shape == (3,) and z.dtype == np.float32 and z.shape == x.shape
    close(z.mean(axis=(0, 2, 3), dtype=np.float64), np.zeros(3), 1e-6)
    close(z.var(axis=(0, 2, 3), dtype=np.float64), np.ones(3), 1e-6)
    close(s.inverse_transform(z), x, 1e-5)
    per_pixel = Standardizer().fit(x)
    assert per_pixel.mean_.shape == (3, 4, 5)
    close(per_pixel.transform(x).var(axis=0), np.ones((3, 4, 5)), 1e-5)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "int64", "bool"])
def test_results_have_the_type_of_the_data(dtype: str) -> None:
    x = np.random.default_rng(4).integers(0, 2, (50, 3)).astype(dtype)
    for transformer in (Standardizer(), Whitening("zca")):
        z = transformer.fit_transform(x)
        assert z.dtype == (dtype if dtype.startswith("float") else np.float64)
        close(z.astype(np.float64).mean(axis=0), np.zeros(3), 1e-3 if dtype == "float16" else 1e-6)


def test_a_float32_mean_is_not_rounded_to_float32() -> None:
    """Mean 1e5, deviation 1e-2: a mean in float32 would be off by a good part of the deviation."""
    x = (1e5 + 1e-2 * np.random.default_rng(5).standard_normal((1000, 1))).astype(np.float32)
    z = Standardizer().fit_transform(x)
    assert abs(z.mean(dtype=np.float64)) < 1e-7


# ------------------------------------------------------------------------------------------------------------ whitening


@pytest.mark.parametrize("kind", ["pca", "zca"])
def test_whitened_data_has_identity_covariance(data: np.ndarray, kind: Any) -> None:
    w = Whitening(kind, eps=0)
    z = w.fit_transform(data)
    close(z.mean(axis=0), np.zeros(6), 1e-10)
    close(np.cov(z.T), np.eye(6), 1e-10)
    close(w.inverse_transform(z), data, 1e-10)
    close(w.matrix_ @ np.cov(data.T) @ w.matrix_.T, np.eye(6), 1e-9)


def test_zca_is_the_whitening_closest_to_its_input(data: np.ndarray) -> None:
    """Every whitening is a rotation of every other; among many, small and large, none comes closer than ZCA."""
    rng = np.random.default_rng(6)
    centred = data - data.mean(axis=0)
    z = Whitening("zca", eps=0).fit_transform(data)
    distance = ((z - centred) ** 2).sum()
    assert distance < ((Whitening("pca", eps=0).fit_transform(data) - centred) ** 2).sum()
    for size in (1e-3, 1e-2, 0.1, 1.0):
        for _ in range(25):
            generator = size * rng.standard_normal((6, 6))
            rotation, _ = np.linalg.qr(np.eye(6) + generator - generator.T)
            rotation *= np.sign(np.diag(rotation))
            close(np.cov((z @ rotation).T), np.eye(6), 1e-9)
            assert ((z @ rotation - centred) ** 2).sum() > distance


def test_zca_matrix_is_symmetric_and_positive(data: np.ndarray) -> None:
    w = Whitening("zca", eps=0).fit(data)
    close(w.matrix_, w.matrix_.T, 1e-12)
    assert np.linalg.eigvalsh(w.matrix_).min() > 0
    close(w.matrix_ @ w.inverse_matrix_, np.eye(6), 1e-10)


def test_pca_components_are_the_principal_axes(data: np.ndarray) -> None:
    w = Whitening("pca", eps=0).fit(data)
    assert (np.diff(w.explained_variance_) <= 0).all()
    close(w.components_ @ w.components_.T, np.eye(6))
    close(w.components_ @ np.cov(data.T) @ w.components_.T, np.diag(w.explained_variance_), 1e-9)
    assert all(row[np.argmax(np.abs(row))] > 0 for row in w.components_)


@pytest.mark.parametrize("kind", ["pca", "zca"])
def test_fewer_components_project(data: np.ndarray, kind: Any) -> None:
    w = Whitening(kind, n_components=2, eps=0)
    z = w.fit_transform(data)
    assert z.shape == ((500, 2) if kind == "pca" else (500, 6))
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(z.T)))[::-1]
    close(eigenvalues, np.r_[np.ones(2), np.zeros(eigenvalues.size - 2)], 1e-10)
    back = w.inverse_transform(z)
    close(w.transform(back), z, 1e-9)
    centred = data - data.mean(axis=0)
    close(back - data.mean(axis=0), centred @ w.components_.T @ w.components_, 1e-9)


def test_eps_is_added_to_the_variances(data: np.ndarray) -> None:
    w = Whitening("pca", eps=0.5)
    z = w.fit_transform(data)
    close(z.var(axis=0, ddof=1), w.explained_variance_ / (w.explained_variance_ + 0.5), 1e-10)
    close(w.inverse_transform(z), data, 1e-10)


def test_directions_without_variance() -> None:
    """Constant pixels, as in digits: zero with eps, an error that names the way out without."""
    rng = np.random.default_rng(7)
    x = np.column_stack([rng.standard_normal((40, 3)), np.full(40, 5.0)])
    for kind in ("pca", "zca"):
        z = Whitening(kind).fit_transform(x)  # type: ignore[arg-type]
        assert np.isfinite(z).all()
        close(np.sort(np.linalg.eigvalsh(np.cov(z.T))), [0, 1, 1, 1], 1e-4)
    with pytest.raises(ValueError, match="n_components <= 3"):
        Whitening("zca", eps=0).fit(x)
    Whitening("zca", n_components=3, eps=0).fit(x)


def test_fewer_samples_than_features() -> None:
    x = np.random.default_rng(8).standard_normal((5, 9))
    assert Whitening("pca").fit_transform(x).shape == (5, 5)
    z = Whitening("pca", n_components=4, eps=0).fit_transform(x)
    close(np.cov(z.T), np.eye(4), 1e-10)
    assert Whitening("zca").fit_transform(x).shape == (5, 9)


def test_ill_conditioned_data_keep_their_digits() -> None:
    """Deviations from 1 to 1e-7: the covariance matrix has condition 1e14, the data 1e7."""
    rng = np.random.default_rng(9)
    rotation, _ = np.linalg.qr(rng.standard_normal((4, 4)))
    x = rng.standard_normal((200, 4)) * np.array([1, 1e-2, 1e-5, 1e-7]) @ rotation
    z = Whitening("pca", eps=0).fit_transform(x)
    close(np.cov(z.T), np.eye(4), 1e-7)


# ----------------------------------------------------------------------------------------------- scikit-learn's manners


@pytest.mark.parametrize(
    "transformer", [Standardizer(with_std=False, axis=(0, 2)), Whitening("zca", n_components=3, eps=0.1)], ids=repr
)
def test_parameters(transformer: Any) -> None:
    params = transformer.get_params()
    twin = type(transformer)(**params)
    assert twin.get_params() == params and repr(twin) == repr(transformer)
    assert transformer.set_params(**params) is transformer
    with pytest.raises(ValueError, match="wrong"):
        transformer.set_params(wrong=1)


def test_a_wrong_name_sets_nothing() -> None:
    w = Whitening()
    with pytest.raises(ValueError, match="nothing"):
        w.set_params(eps=1.0, nothing=2)
    assert w.eps == 1e-5


def test_fitted_transformers_pickle(data: np.ndarray) -> None:
    for transformer in (Standardizer().fit(data), Whitening().fit(data)):
        twin = pickle.loads(pickle.dumps(transformer))
        np.testing.assert_array_equal(twin.transform(data), transformer.transform(data))


def test_data_are_not_changed(data: np.ndarray) -> None:
    before = data.copy()
    data.flags.writeable = False
    for transformer in (Standardizer(), Whitening()):
        transformer.inverse_transform(transformer.fit_transform(data))
    np.testing.assert_array_equal(data, before)


def test_clone_pipeline_and_parity_with_sklearn(data: np.ndarray) -> None:
    pytest.importorskip("sklearn")
    from sklearn.base import clone
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = Whitening("zca", eps=0.25).fit(data)
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params() and not hasattr(copy, "mean_")

    close(Standardizer().fit_transform(data), StandardScaler().fit_transform(data), 1e-9)
    ours, theirs = Whitening(eps=0).fit_transform(data), PCA(whiten=True).fit_transform(data)
    close(np.abs(ours), np.abs(theirs), 1e-8)

    labels = (data[:, 0] > 0).astype(int)
    pipe = make_pipeline(Standardizer(), Whitening(), LogisticRegression())
    assert pipe.fit(data, labels).score(data, labels) > 0.9
    z = make_pipeline(Standardizer(), Whitening(eps=0)).fit(data).transform(data)
    close(np.cov(z.T), np.eye(6), 1e-10)
    search = GridSearchCV(pipe, {"whitening__n_components": [1, 6]}, cv=2).fit(data, labels)
    assert search.best_params_ == {"whitening__n_components": 6}


def test_feature_names(data: np.ndarray) -> None:
    assert list(Standardizer().fit(data).get_feature_names_out()) == [f"x{i}" for i in range(6)]
    assert list(Standardizer().fit(data).get_feature_names_out("abcdef")) == list("abcdef")
    assert list(Whitening("pca", n_components=2).fit(data).get_feature_names_out()) == ["pca0", "pca1"]
    assert list(Whitening("zca").fit(data).get_feature_names_out("abcdef")) == list("abcdef")
    with pytest.raises(ValueError, match="6 names"):
        Standardizer().fit(data).get_feature_names_out("abc")


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("make", [Standardizer, Whitening])
def test_errors_name_what_was_expected(make: Any) -> None:
    x = np.random.default_rng(10).standard_normal((9, 4))
    for call in (make().transform, make().inverse_transform, lambda _: make().get_feature_names_out()):
        with pytest.raises(NotFittedError, match="fit first"):
            call(x)
    with pytest.raises(ValueError, match=r"^X: expected (4 features|features of shape \(4,\)) as in fit"):
        make().fit(x).transform(x[:, :3])
    with pytest.raises(ValueError, match="X: expected 2 axes"):
        make().fit(x[0])
    with pytest.raises(ValueError, match="sample"):
        make().fit(x[:0])
    for bad in (x.astype(complex), x.astype(str), x.astype(object), np.ma.masked_array(x)):
        with pytest.raises(TypeError, match="^X: expected"):
            make().fit(bad)
    for value in (np.nan, np.inf):
        broken = x.copy()
        broken[3, 2] = value
        with pytest.raises(ValueError, match="feature.*2"):
            make().fit(broken)


def test_errors_of_the_standardizer() -> None:
    x = np.ones((5, 3))
    with pytest.raises(ValueError, match="axis"):
        Standardizer(axis=2).fit(x)
    with pytest.raises(ValueError, match="axis"):
        Standardizer(axis=(0, -2)).fit(x)
    s = Standardizer().fit(x)
    with pytest.raises(ValueError, match="as before"):
        s.partial_fit(np.ones((5, 4)))
    broken = np.full((5, 3), np.nan)
    with pytest.raises(ValueError, match="finite"):
        s.partial_fit(broken)
    np.testing.assert_array_equal(s.mean_, 1)
    assert s.n_samples_seen_ == 5


def test_errors_of_the_whitening() -> None:
    x = np.random.default_rng(11).standard_normal((9, 4))
    for name, bad in (("kind", "ica"), ("eps", -1.0), ("eps", np.nan), ("n_components", 0), ("n_components", 5)):
        with pytest.raises(ValueError, match=f"^{name}"):
            Whitening().set_params(**{name: bad}).fit(x)
    with pytest.raises(ValueError, match="two samples"):
        Whitening().fit(x[:1])
    with pytest.raises(ValueError, match="reshape"):
        Whitening().fit(x.reshape(9, 2, 2))
    with pytest.raises(ValueError, match="4 features"):
        Whitening("zca").fit(x).inverse_transform(x[:, :2])
