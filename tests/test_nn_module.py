"""Modules: what is inside and under which name, state in and out, modes, copies, and one backward per forward."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest

from fastnorm import nn


def network(dtype: Any = np.float32) -> nn.Sequential:
    """Conv, batch norm, pooling, Linear: the parts that have state and those that have none."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False, dtype=dtype),
        nn.BatchNorm2d(4, activation="relu", dtype=dtype),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3, dtype=dtype),
    )


KEYS = [
    "0.weight",
    "1.weight",
    "1.bias",
    "1.running_mean",
    "1.running_var",
    "1.num_batches_tracked",
    "4.weight",
    "4.bias",
]


class Block(nn.Module):
    """A residual block, written as a user would."""

    def __init__(self, width: int) -> None:
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False, dtype=np.float64)
        self.norm = nn.BatchNorm2d(width, activation="relu", dtype=np.float64)
        self.scale = nn.Parameter(np.full(1, 2.0))
        self.register_buffer("calls", np.zeros((), np.int64))

    def forward(self, x: np.ndarray) -> np.ndarray:
        y = self.norm(self.conv(x), residual=x)
        self.calls += 1
        self.save_for_backward(y)
        return self.scale.data * y

    def backward(self, dy: np.ndarray) -> np.ndarray:
        y = self.saved_for_backward()
        self.scale.accumulate((dy * y).sum(keepdims=True).reshape(1))
        dx, dresidual = self.norm.backward(self.scale.data * dy)
        return self.conv.backward(dx) + dresidual


def test_names_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(4),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 3),
    )
    ours = network()
    assert list(ours.state_dict()) == list(theirs.state_dict()) == KEYS
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert [n for n, _ in ours.named_modules()] == [n for n, _ in theirs.named_modules()]
    for key, value in theirs.state_dict().items():
        assert ours.state_dict()[key].shape == tuple(value.shape)


def test_state_goes_to_torch_and_back() -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 3),
    )
    ours = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    x = np.random.default_rng(0).standard_normal((8, 1, 4, 4)).astype(np.float32)
    theirs(torch.from_numpy(x))
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    theirs.eval()
    np.testing.assert_allclose(ours.eval()(x), theirs(torch.from_numpy(x)).detach().numpy(), 1e-5, 1e-6)
    ours.train()(x)
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in ours.state_dict().items()})
    np.testing.assert_array_equal(theirs[1].running_var.numpy(), ours[1].running_var)
    assert int(theirs[1].num_batches_tracked) == 2


def test_state_goes_through_a_numpy_file() -> None:
    ours, file = network(), io.BytesIO()
    np.savez(file, **ours.state_dict())
    file.seek(0)
    other = network()
    with np.load(file, allow_pickle=False) as saved:
        other.load_state_dict(saved)
    for key, value in other.state_dict().items():
        np.testing.assert_array_equal(value, ours.state_dict()[key])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda s: s.pop("4.bias"), ValueError, "missing keys: 4.bias"),
        (lambda s: s.update(extra=np.ones(1)), ValueError, "unexpected keys: extra"),
        (
            lambda s: s.update({"4.bias": np.ones(4, np.float32)}),
            ValueError,
            r"4.bias has shape \(4,\), expected \(3,\)",
        ),
        (lambda s: s.update({"4.bias": np.ones(3)}), TypeError, "4.bias is float64, expected float32"),
        (lambda s: s.update({"4.bias": np.ones(3, np.int64)}), TypeError, "int64"),
        (lambda s: s.update({"1.num_batches_tracked": np.float32(1)}), TypeError, "num_batches_tracked"),
    ],
)
def test_a_wrong_state_changes_nothing(change: Any, error: type[Exception], words: str) -> None:
    model = network()
    before = model.state_dict()
    state = {key: value + 1 for key, value in before.items()}
    change(state)
    with pytest.raises(error, match=words):
        model.load_state_dict(state)
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


def test_without_strict_the_rest_is_loaded_and_reported() -> None:
    model = network()
    result = model.load_state_dict({"4.bias": np.array([1, 2, 3], np.float32), "extra": np.ones(1)}, strict=False)
    assert result.missing_keys == KEYS[:-1] and result.unexpected_keys == ["extra"]
    assert model.state_dict()["4.bias"].tolist() == [1, 2, 3]


def test_loading_keeps_the_arrays_that_others_hold() -> None:
    model = network()
    held = model[4].weight.data
    model.load_state_dict(network().state_dict())
    assert model[4].weight.data is held
    model.state_dict()["4.weight"][...] = 0
    assert held.any()


def test_seeds_fix_the_initial_weights() -> None:
    nn.manual_seed(3)
    first = network().state_dict()
    nn.manual_seed(3)
    second = network().state_dict()
    third = network().state_dict()
    assert all((first[key] == second[key]).all() for key in KEYS)
    assert (first["0.weight"] != third["0.weight"]).any()
    assert (nn.Linear(3, 3, rng=1).weight.data == nn.Linear(3, 3, rng=np.random.default_rng(1)).weight.data).all()


def test_initial_weights_fill_torchs_range() -> None:
    layer = nn.Conv2d(4, 64, 5)
    bound = 1 / np.sqrt(100)
    for parameter in layer.parameters():
        assert parameter.dtype == np.float32
        assert 0.9 * bound < np.abs(parameter.data).max() <= bound * (1 + 1e-6)


def test_a_users_module_is_found_trained_and_differentiated() -> None:
    rng = np.random.default_rng(1)
    model = nn.Sequential({"first": Block(2), "second": Block(2)})
    names = [name for name, _ in model.named_parameters()]
    assert names == [
        f"{b}.{p}" for b in ("first", "second") for p in ("scale", "conv.weight", "norm.weight", "norm.bias")
    ]
    assert "first.calls" in model.state_dict()
    x, dy = rng.standard_normal((2, 3, 2, 4, 4))
    model(x)
    dx = model.backward(dy)
    u, t = rng.standard_normal(x.shape), 1e-6
    slope = ((dy * model(x + t * u)).sum() - (dy * model(x - t * u)).sum()) / (2 * t)
    assert slope == pytest.approx((u * dx).sum(), rel=1e-6)


def test_one_backward_per_forward() -> None:
    x = np.ones((4, 3), np.float32)
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    with pytest.raises(RuntimeError, match="ReLU.backward: nothing to go back through"):
        model.backward(x[:, :2])
    model(x)
    model.backward(x[:, :2])
    with pytest.raises(RuntimeError, match="once before each backward"):
        model.backward(x[:, :2])


def test_no_grad_keeps_nothing() -> None:
    model, x = network(), np.random.default_rng(2).standard_normal((2, 1, 4, 4)).astype(np.float32)
    expected = model.eval()(x)
    with nn.no_grad():
        np.testing.assert_array_equal(model(x), expected)
    with pytest.raises(RuntimeError, match="nothing to go back through"):
        model.backward(expected)


def test_gradients_add_up_until_forgotten() -> None:
    layer, x = nn.Linear(3, 2), np.ones((4, 3), np.float32)
    for _ in range(2):
        layer(x)
        layer.backward(np.ones((4, 2), np.float32))
    assert (layer.weight.grad == 8).all()
    held = layer.weight.grad
    layer.zero_grad(set_to_none=False)
    assert layer.weight.grad is held and not held.any()
    layer.zero_grad()
    assert layer.weight.grad is None
    with pytest.raises(ValueError, match="shape"):
        layer.weight.accumulate(np.ones(3, np.float32))


def test_modes_reach_every_layer_and_copies_are_apart() -> None:
    model = network()
    assert model.eval() is model and not any(m.training for m in model.modules())
    assert all(m.training for m in model.train().modules())
    x = np.random.default_rng(3).standard_normal((2, 1, 4, 4)).astype(np.float32)
    model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(twin.eval()(x), model.eval()(x))
        twin[4].weight.data += 1
        assert (twin[4].weight.data != model[4].weight.data).all()
    seen: list[str] = []
    model.apply(lambda module: seen.append(type(module).__name__))
    assert seen == ["Conv2d", "BatchNorm2d", "MaxPool2d", "Flatten", "Linear", "Sequential"]


def test_shared_parameters_are_learned_once() -> None:
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    assert len(list(model.parameters())) == 1 and list(model.state_dict()) == ["0.weight", "1.weight"]


def test_sequential_refuses_what_cannot_work() -> None:
    layer = nn.ReLU()
    with pytest.raises(ValueError, match="there already"):
        nn.Sequential(layer, layer)
    with pytest.raises(TypeError, match="expected layers"):
        nn.Sequential(np.ones(3))
    with pytest.raises(ValueError, match="cannot be the name"):
        nn.Sequential({"forward": layer})
    model = nn.Sequential(layer).append(nn.Tanh())
    assert len(model) == 2 and model[-1] is list(model)[1]


def test_what_is_printed() -> None:
    assert repr(network()).splitlines() == [
        "Sequential(",
        "  (0): Conv2d(1, 4, kernel_size=(3, 3), padding=1, bias=False)",
        "  (1): BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, activation='relu', track_running_stats=True)",
        "  (2): MaxPool2d(kernel_size=(2, 2), stride=(2, 2), padding=(0, 0))",
        "  (3): Flatten(start_dim=1, end_dim=-1)",
        "  (4): Linear(16, 3, bias=True)",
        ")",
    ]


def test_parameters_are_floating() -> None:
    with pytest.raises(TypeError, match="floating"):
        nn.Parameter(np.arange(3))
    with pytest.raises(NotImplementedError, match="Module defines no forward"):
        nn.Module()(1)
    with pytest.raises(ValueError, match="get_rng_state"):
        nn.set_rng_state({"state": 1})
