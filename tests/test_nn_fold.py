"""Folding a batch norm into the layer before it leaves the function as it was, at the edges too, and the model untouched."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from fastnorm import nn


def randomise(model: nn.Module, rng: np.random.Generator, smallest_variance: float = 0.1) -> None:
    """Parameters and running statistics at random, with some gamma 0 and some tiny variances."""
    for parameter in model.parameters():
        parameter.data[...] = rng.standard_normal(parameter.shape)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_var is not None:
            module.running_mean[...] = rng.standard_normal(module.num_features)
            module.running_var[...] = rng.uniform(smallest_variance, 3.0, module.num_features)
            module.running_var[-1] = smallest_variance
            if module.weight is not None:
                module.weight.data[0] = 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("smallest", [0.1, 1e-12, 0.0])
def test_folded_layers_compute_the_same(dtype: Any, smallest: float) -> None:
    rng = np.random.default_rng(0)
    for bias, affine, activation, conv in itertools.product(
        [False, True], [False, True], [None, "relu"], [False, True]
    ):
        options: dict[str, Any] = {"affine": affine, "activation": activation, "dtype": dtype}
        if conv:
            pair: list[nn.Module] = [nn.Conv2d(4, 6, 3, groups=2, bias=bias, dtype=dtype), nn.BatchNorm2d(6, **options)]
        else:
            pair = [nn.Linear(4, 6, bias=bias, dtype=dtype), nn.BatchNorm1d(6, **options)]
        model = nn.Sequential(*pair).eval()
        randomise(model, rng, smallest)
        x = rng.standard_normal((8, 4, 5, 5) if conv else (8, 4)).astype(dtype)
        folded = nn.fold_batch_norm(model)
        expected = model(x)
        names = [type(layer).__name__ for layer in folded]
        assert names == ["Conv2d" if conv else "Linear", "ReLU" if activation else "Identity"]
        # An error of one rounding in W·x is multiplied by gamma/sqrt(var + eps), as it is without folding.
        ulp = np.finfo(dtype).eps * (np.abs(expected).max() + np.abs(x).max() / np.sqrt(smallest + 1e-5))
        np.testing.assert_allclose(folded(x), expected, 0, 100 * ulp)


def test_gamma_zero_gives_exactly_beta() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    randomise(model, np.random.default_rng(1))
    model[1].weight.data[...] = 0
    y = nn.fold_batch_norm(model)(np.random.default_rng(2).standard_normal((4, 3)).astype(np.float32))
    np.testing.assert_array_equal(y, np.broadcast_to(model[1].bias.data, y.shape))


def test_nested_models_are_folded_and_the_model_is_not_changed() -> None:
    rng = np.random.default_rng(3)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Flatten(),
        nn.weight_norm(nn.Linear(16, 5)),
        nn.BatchNorm1d(5),
        nn.Linear(5, 3),
    )
    randomise(model, rng)
    x = rng.standard_normal((6, 1, 4, 4)).astype(np.float32)
    before = model.state_dict()
    folded = nn.fold_batch_norm(model)
    assert all(m.training for m in model.modules()) and not any(m.training for m in folded.modules())
    assert list(before) == list(model.state_dict())
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[key])
    np.testing.assert_allclose(folded(x), model.eval()(x), 1e-4, 1e-4)
    assert sorted(folded.state_dict()) == ["0.0.bias", "0.0.weight", "2.bias", "2.weight", "4.bias", "4.weight"]


def test_what_cannot_be_folded_stays() -> None:
    for model in (
        nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3)),
        nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.BatchNorm1d(3)),
        nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)),
        nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)),
    ):
        assert list(nn.fold_batch_norm(model).state_dict()) == list(model.state_dict())


def test_a_weight_that_two_layers_share_is_folded_once() -> None:
    rng = np.random.default_rng(0)
    first, last = nn.Linear(4, 4), nn.Linear(4, 4)
    last.weight = first.weight
    model = nn.Sequential(first, nn.BatchNorm1d(4), last)
    randomise(model, rng)
    model.eval()
    x = rng.standard_normal((6, 4)).astype(np.float32)
    np.testing.assert_allclose(nn.fold_batch_norm(model)(x), model(x), rtol=1e-4, atol=1e-5)
