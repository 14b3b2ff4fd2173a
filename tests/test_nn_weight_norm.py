"""Weight norm around layers: torch's names, shapes and values, on and off again, and what cannot be wrapped."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from fastnorm import nn


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("kind", ["Linear", "Conv2d"])
def test_agrees_with_torch(kind: str, dim: int | None) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    arguments, shape = ((4, 3), (6, 4)) if kind == "Linear" else ((4, 3, 2), (2, 4, 5, 5))
    ours = nn.weight_norm(getattr(nn, kind)(*arguments, dtype=np.float64), dim=dim)
    theirs = torch.nn.utils.weight_norm(getattr(torch.nn, kind)(*arguments, dtype=torch.float64), dim=dim)
    state, their_state = ours.state_dict(), theirs.state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: tuple(v.shape) for k, v in their_state.items()}
    ours.load_state_dict(their_state)
    for parameter in ours.parameters():
        parameter.data *= rng.uniform(0.5, 2.0, parameter.shape)
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in ours.state_dict().items()})
    x = rng.standard_normal(shape)
    tx = torch.tensor(x, requires_grad=True)
    y, ty = ours(x), theirs(tx)
    np.testing.assert_allclose(y, ty.detach().numpy(), 1e-12, 1e-12)
    dy = rng.standard_normal(y.shape)
    ty.backward(torch.from_numpy(dy))
    np.testing.assert_allclose(ours.backward(dy), tx.grad.numpy(), 1e-12, 1e-12)
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        np.testing.assert_allclose(parameter.grad, gradients[name].grad.numpy(), 1e-11, 1e-12)


def test_on_and_off_leave_the_function_as_it_was() -> None:
    x = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    layer = nn.Linear(4, 3)
    before = layer(x)
    assert nn.weight_norm(layer) is layer
    assert [name for name, _ in layer.named_parameters()] == ["bias", "weight_g", "weight_v"]
    np.testing.assert_allclose(layer(x), before, 1e-6, 1e-6)
    layer.weight_g.data *= 2
    doubled = layer(x)
    assert nn.remove_weight_norm(layer) is layer
    np.testing.assert_array_equal(layer(x), doubled)
    assert sorted(name for name, _ in layer.named_parameters()) == ["bias", "weight"]


def test_loaded_and_copied_parameters_are_the_ones_used() -> None:
    x = np.ones((2, 4), np.float32)
    first, second = (nn.weight_norm(nn.Linear(4, 3, rng=seed)) for seed in (1, 2))
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(second(x), first(x))
    twin = copy.deepcopy(second)
    twin.weight_g.data *= 2
    assert (twin(x) != second(x)).any()
    np.testing.assert_array_equal(second(x), first(x))


def test_what_cannot_be_wrapped_is_named() -> None:
    layer = nn.weight_norm(nn.Linear(4, 3))
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: nn.weight_norm(layer), AttributeError, "already"),
        (lambda: nn.weight_norm(nn.ReLU()), AttributeError, "no parameter 'weight'"),
        (lambda: nn.weight_norm(nn.Linear(4, 3), dim=2), ValueError, "dim"),
        (lambda: nn.remove_weight_norm(nn.Linear(4, 3)), ValueError, "no weight norm"),
    ]
    for call, error, words in cases:
        with pytest.raises(error, match=words):
            call()


def test_a_row_of_zeros_is_an_error_that_changes_nothing() -> None:
    layer = nn.Linear(4, 3)
    layer.weight.data[1] = 0
    with pytest.raises(ValueError, match="zero"):
        nn.weight_norm(layer)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
