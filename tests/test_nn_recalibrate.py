"""Recalibration: "exact" is one training pass over all the data, "paper" is its formula, and a failure changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from fastnorm import nn


def network(dtype: type = np.float64) -> nn.Sequential:
    """Two norms, the second one's statistics depending on the first's, with a dropout that must stay off."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False, rng=1, dtype=dtype),
        nn.BatchNorm2d(4, dtype=dtype),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(16, 5, rng=2, dtype=dtype),
        nn.BatchNorm1d(5, activation="relu", dtype=dtype),
    )


def statistics(model: nn.Module) -> list[np.ndarray]:
    """The running means and variances of the model."""
    return [buffer for name, buffer in model.named_buffers() if not name.endswith("tracked")]


def data(dtype: type = np.float64) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal((23, 2, 4, 4)) * 3 + 5).astype(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-6)])
def test_exact_is_one_training_pass_over_all_the_data(dtype: type, tolerance: float) -> None:
    x = data(dtype)
    model, whole = network(dtype), network(dtype)
    whole.eval()
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
            module.train()
    whole(x)
    nn.recalibrate(model, [x[:10], (x[10:13], None), x[13:13], [x[13:]]])
    for ours, expected in zip(statistics(model), statistics(whole), strict=True):
        np.testing.assert_allclose(ours, expected, tolerance, tolerance)
    assert model.state_dict()["1.num_batches_tracked"] == 3
    assert all(module.training for module in model.modules())


def test_paper_averages_batch_means_and_unbiased_variances() -> None:
    batches = [data()[:8], data()[8:16]]
    model = network()
    model.eval()
    nn.recalibrate(model, iter(batches), how="paper")
    first = [model[0](x) for x in batches]
    m = first[0].size // 4
    means = np.mean([y.mean((0, 2, 3)) for y in first], axis=0)
    variances = m / (m - 1) * np.mean([y.var((0, 2, 3)) for y in first], axis=0)
    np.testing.assert_allclose(model[1].running_mean, means, 1e-12)
    np.testing.assert_allclose(model[1].running_var, variances, 1e-12)
    # The second norm sees each batch normalised by its own statistics.
    own = nn.Sequential(
        model[0], nn.BatchNorm2d(4, track_running_stats=False, dtype=np.float64), nn.Tanh(), nn.Flatten(), model[5]
    )
    second = [own(x) for x in batches]
    np.testing.assert_allclose(model[6].running_mean, np.mean([y.mean(0) for y in second], axis=0), 1e-12)
    np.testing.assert_allclose(model[6].running_var, 8 / 7 * np.mean([y.var(0) for y in second], axis=0), 1e-12)
    assert not any(module.training for module in model.modules())


def test_exact_survives_a_mean_far_from_zero() -> None:
    x = (np.random.default_rng(1).standard_normal((64, 3)) + 1e5).astype(np.float32)
    norm = nn.BatchNorm1d(3)
    nn.recalibrate(norm, np.split(x, 8))
    np.testing.assert_allclose(norm.running_var, x.astype(np.float64).var(0, ddof=1), 1e-6)


class _Broken(Exception):
    pass


def test_a_failure_changes_nothing() -> None:
    def broken() -> Iterator[np.ndarray]:
        yield data()
        raise _Broken

    model = network()
    before = model.state_dict()
    one = np.ones((1, 2, 4, 4))
    for batches, how, error, words in [
        (broken(), "paper", _Broken, ""),
        ([], "exact", ValueError, "no data"),
        ([data()[:0]], "exact", ValueError, "no data"),
        (iter([data()]), "exact", ValueError, "generator"),
        ([one], "exact", ValueError, "at least 2"),
        ([one], "paper", ValueError, "at least 2"),
        ([data()], "other", ValueError, "how must be"),
    ]:
        with pytest.raises(error, match=words or None):
            nn.recalibrate(model, batches, how=how)
        assert all(module.training for module in model.modules())
        for key, value in model.state_dict().items():
            np.testing.assert_array_equal(value, before[key])
    model.eval()(data())


def test_models_without_tracked_norms_are_left_alone() -> None:
    nn.recalibrate(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)), [])


@pytest.mark.parametrize("how", ["exact", "paper"])
@pytest.mark.parametrize("bad", [np.nan, 1e25])
def test_data_without_finite_statistics_change_nothing(how: str, bad: float) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    x = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    x[2, 1] = bad
    before = {name: value.copy() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="not finite"):
        nn.recalibrate(model, [x], how)
    assert all(np.array_equal(before[name], value) for name, value in model.state_dict().items())
