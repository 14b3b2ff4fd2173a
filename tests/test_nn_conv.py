"""Convolution and pooling: every geometry agrees with torch, in both memory layouts, whatever the blocks of samples."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from fastnorm import nn
from fastnorm.nn import conv as conv_module

GEOMETRIES = list(itertools.product([(3, 3), (1, 1), (2, 3)], [1, 2, (2, 3)], [0, 1, (1, 2)], [1, 2], [1, 2, 4]))


def channels_last(x: np.ndarray) -> np.ndarray:
    """The same values, NHWC in memory."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def direct(x: np.ndarray, w: np.ndarray, stride: int) -> np.ndarray:
    """The definition, as loops."""
    (n, _, h, width), (o, _, kh, kw) = x.shape, w.shape
    y = np.zeros((n, o, (h - kh) // stride + 1, (width - kw) // stride + 1))
    for i, j in np.ndindex(y.shape[2:]):
        window = x[:, :, i * stride : i * stride + kh, j * stride : j * stride + kw]
        y[:, :, i, j] = np.tensordot(window, w, ((1, 2, 3), (1, 2, 3)))
    return y


def test_convolution_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    layer = nn.Conv2d(3, 4, (2, 3), stride=2, bias=False, dtype=np.float64)
    x = rng.standard_normal((2, 3, 7, 9))
    np.testing.assert_allclose(layer(x), direct(x, layer.weight.data, 2), 1e-12, 1e-12)


@pytest.mark.parametrize("layout", ["nchw", "channels last"])
def test_convolution_agrees_with_torch_in_every_geometry(layout: str) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    for kernel, stride, padding, dilation, groups in GEOMETRIES:
        ours = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups, dtype=np.float64)
        theirs = torch.nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups, dtype=torch.float64)
        theirs.load_state_dict({key: torch.from_numpy(value) for key, value in ours.state_dict().items()})
        x = rng.standard_normal((3, 4, 9, 8))
        tx = torch.tensor(x, requires_grad=True)
        ty = theirs(tx)
        y = ours(x if layout == "nchw" else channels_last(x))
        np.testing.assert_allclose(y, ty.detach().numpy(), 1e-12, 1e-12)
        dy = rng.standard_normal(y.shape)
        ty.backward(torch.from_numpy(dy))
        np.testing.assert_allclose(ours.backward(dy), tx.grad.numpy(), 1e-12, 1e-12)
        np.testing.assert_allclose(ours.weight.grad, theirs.weight.grad.numpy(), 1e-11, 1e-11)
        np.testing.assert_allclose(ours.bias.grad, theirs.bias.grad.numpy(), 1e-11, 1e-11)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("kernel", [3, 2, (2, 3)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_named_padding_agrees_with_torch(padding: str, kernel: Any) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    ours = nn.Conv2d(2, 3, kernel, padding=padding, dilation=(1, 2), dtype=np.float64)
    theirs = torch.nn.Conv2d(2, 3, kernel, padding=padding, dilation=(1, 2), dtype=torch.float64)
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in ours.state_dict().items()})
    x = rng.standard_normal((2, 2, 6, 7))
    np.testing.assert_allclose(ours(x), theirs(torch.from_numpy(x)).detach().numpy(), 1e-12, 1e-12)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("stride", [None, 1, 2, 3])
@pytest.mark.parametrize("kernel", [2, 3, (3, 2)])
def test_pooling_agrees_with_torch(kernel: Any, stride: Any, padding: int, ceil_mode: bool) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    pools = [
        (
            nn.MaxPool2d(kernel, stride, padding, 1, ceil_mode),
            torch.nn.MaxPool2d(kernel, stride, padding, 1, False, ceil_mode),
        ),
        (nn.MaxPool2d(kernel, stride, padding, 2), torch.nn.MaxPool2d(kernel, stride, padding, 2)),
        (nn.AvgPool2d(kernel, stride, padding, ceil_mode), torch.nn.AvgPool2d(kernel, stride, padding, ceil_mode)),
        (
            nn.AvgPool2d(kernel, stride, padding, ceil_mode, False, None),
            torch.nn.AvgPool2d(kernel, stride, padding, ceil_mode, False, None),
        ),
        (
            nn.AvgPool2d(kernel, stride, padding, divisor_override=5),
            torch.nn.AvgPool2d(kernel, stride, padding, divisor_override=5),
        ),
    ]
    for (ours, theirs), layout in itertools.product(pools, (np.ascontiguousarray, channels_last)):
        x = np.round(rng.standard_normal((2, 3, 9, 8)), 1)  # rounded, so that maxima tie
        tx = torch.tensor(x, requires_grad=True)
        ty = theirs(tx)
        y = ours(layout(x))
        assert y.shape == tuple(ty.shape)
        np.testing.assert_allclose(y, ty.detach().numpy(), 1e-12, 1e-12)
        dy = rng.standard_normal(y.shape)
        ty.backward(torch.from_numpy(dy))
        np.testing.assert_allclose(ours.backward(dy), tx.grad.numpy(), 1e-12, 1e-12)


@pytest.mark.parametrize(
    "make", [lambda: nn.Conv2d(4, 6, 3, padding=1), lambda: nn.MaxPool2d(2), lambda: nn.AvgPool2d(2)]
)
def test_the_layout_of_the_input_is_kept(make: Any) -> None:
    layer = make()
    x = np.random.default_rng(4).standard_normal((2, 4, 6, 6)).astype(np.float32)
    y = layer(x)
    assert y.flags.c_contiguous and layer.backward(y).flags.c_contiguous
    last = layer(channels_last(x))
    assert last.transpose(0, 2, 3, 1).flags.c_contiguous
    np.testing.assert_array_equal(last, y)
    assert layer.backward(last).transpose(0, 2, 3, 1).flags.c_contiguous


def test_blocks_of_samples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, dtype=np.float64)
    x = rng.standard_normal((7, 4, 6, 5))
    whole = layer(x)
    dy = rng.standard_normal(whole.shape)
    dx, dweight = layer.backward(dy), layer.weight.grad
    layer.zero_grad()
    monkeypatch.setattr(conv_module, "_BLOCK_BYTES", 8 * 4 * 9 * 9 * 3)
    np.testing.assert_allclose(layer(x), whole, 1e-12, 1e-12)
    np.testing.assert_allclose(layer.backward(dy), dx, 1e-12, 1e-12)
    np.testing.assert_allclose(layer.weight.grad, dweight, 1e-12, 1e-12)


def test_empty_batch_and_sliced_input() -> None:
    rng = np.random.default_rng(6)
    layer = nn.Conv2d(3, 4, 3, padding=1)
    y = layer(np.empty((0, 3, 5, 5), np.float32))
    assert y.shape == (0, 4, 5, 5)
    assert layer.backward(y).shape == (0, 3, 5, 5) and not layer.weight.grad.any()
    x = rng.standard_normal((4, 6, 10, 5)).astype(np.float32)[::2, ::2, ::-2]
    np.testing.assert_array_equal(layer(x), layer(x.copy()))
