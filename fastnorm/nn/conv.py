"""Two-dimensional convolution as a matrix product: windows laid out as rows (im2col), then NumPy's BLAS.

The windows are gathered from a channels-last copy, where a row of a window, kernel width × channels, is one contiguous run;
gathering from NCHW would copy runs of a few elements. Samples are taken in blocks whose windows fit the cache, so the gathered
windows, kernel height × width times as large as the input, never travel to memory; backward gathers them again rather than
keep them. The input's gradient is for stride 1 a correlation too, with the kernel turned round: gathering runs of channels is
several times as fast as adding them. The output has the layout of the input: NCHW, or channels-last memory under an NCHW shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import DTypeLike

from ._common import (
    Array,
    as_pair,
    empty_nchw,
    float_dtype,
    is_channels_last,
    positive,
    require_gradient,
    require_input,
    uniform_parameter,
)
from .module import Module, Parameter
from .rng import RngLike, resolve

__all__ = ["Conv2d"]

Pair = tuple[int, int]

# Bytes of gathered windows per block. Forward and backward of 3×3 layers on 8×8 to 28×28 images took the same time, within the
# noise, from a quarter to 2 MB (L2 cache of 1 MB), and up to a half more below and above.
_BLOCK_BYTES = 1 << 20


class _Geometry(NamedTuple):
    """Where the windows are."""

    kernel: Pair
    stride: Pair
    dilation: Pair
    pads: tuple[Pair, Pair]
    groups: int


class Conv2d(Module):
    """y[n, o] = b[o] + Σ_c w[o, c] ⋆ x[n, c], the cross-correlation that networks call convolution.

    x: (N, in_channels, H, W), float32 or float64 as `dtype` says; y: (N, out_channels, H', W') with
    H' = (H + 2·padding − dilation·(kernel − 1) − 1)//stride + 1. weight: (out_channels, in_channels/groups, kH, kW), bias:
    (out_channels,), from U(−1/sqrt(fan_in), 1/sqrt(fan_in)) as in torch. `padding` is a number, two, "valid" or "same".

    Raises TypeError or ValueError for arguments or inputs that do not fit.
    """

    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        dtype: DTypeLike = np.float32,
        rng: RngLike = None,
    ) -> None:
        self.in_channels = positive("Conv2d", "in_channels", in_channels)
        self.out_channels = positive("Conv2d", "out_channels", out_channels)
        self.kernel_size = as_pair("Conv2d", "kernel_size", kernel_size, 1)
        self.stride = as_pair("Conv2d", "stride", stride, 1)
        self.dilation = as_pair("Conv2d", "dilation", dilation, 1)
        self.groups = positive("Conv2d", "groups", groups)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"Conv2d: groups = {groups} must divide in_channels = {in_channels} and out_channels = {out_channels}"
            )
        self.padding = padding
        self._pads = self._resolve_padding(padding)
        kind, generator = float_dtype("Conv2d", dtype), resolve(rng)
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        fan_in = shape[1] * shape[2] * shape[3]
        self.weight = uniform_parameter(shape, fan_in, kind, generator)
        self.bias = uniform_parameter((out_channels,), fan_in, kind, generator) if bias else None

    def _resolve_padding(self, padding: int | Sequence[int] | str) -> tuple[tuple[int, int], tuple[int, int]]:
        """((top, bottom), (left, right))."""
        if not isinstance(padding, str):
            high, wide = as_pair("Conv2d", "padding", padding, 0)
            return (high, high), (wide, wide)
        if padding == "valid":
            return (0, 0), (0, 0)
        if padding != "same":
            raise ValueError(f"Conv2d: padding must be a number, two, 'valid' or 'same', got {padding!r}")
        if self.stride != (1, 1):
            raise ValueError(f"Conv2d: padding='same' needs stride 1, got {self.stride}")
        total_h, total_w = (d * (k - 1) for k, d in zip(self.kernel_size, self.dilation, strict=True))
        return (total_h // 2, total_h - total_h // 2), (total_w // 2, total_w - total_w // 2)

    def _output_size(self, x: Array) -> tuple[int, int]:
        sizes = []
        for size, pads, k, s, d in zip(
            x.shape[2:], self._pads, self.kernel_size, self.stride, self.dilation, strict=True
        ):
            span = d * (k - 1) + 1
            if size + sum(pads) < span:
                raise ValueError(
                    f"Conv2d: the kernel spans {span}, the padded input {size + sum(pads)}, for x of shape {x.shape}"
                )
            sizes.append((size + sum(pads) - span) // s + 1)
        return sizes[0], sizes[1]

    def forward(self, x: Array) -> Array:
        """The convolution; keeps a reference to `x`."""
        require_input("Conv2d", x, self.weight, 1, self.in_channels, 4)
        oh, ow = self._output_size(x)
        y = empty_nchw((x.shape[0], self.out_channels, oh, ow), x.dtype, is_channels_last(x))
        w = self._grouped_weight().transpose(0, 3, 4, 2, 1)
        _correlate(x, w, self._geometry(), None if self.bias is None else self.bias.data, y)
        self.save_for_backward(x)
        return y

    def backward(self, dy: Array) -> Array:
        """dx; adds windowsᵀ·dy to the weight's gradient and Σdy to the bias's."""
        x: Array = self.saved_for_backward()
        oh, ow = self._output_size(x)
        require_gradient("Conv2d", dy, (x.shape[0], self.out_channels, oh, ow), x.dtype)
        g, o, (kh, kw) = self.groups, self.out_channels, self.kernel_size
        dy_last = dy.transpose(0, 2, 3, 1)
        dmatrix = np.zeros((g, kh * kw * x.shape[1] // g, o // g), x.dtype)
        dbias = np.zeros((g, o // g), x.dtype)
        for rows, windows in _windows(x, (oh, ow), self._geometry()):
            slopes = _by_group(dy_last[rows], g)
            dmatrix += windows.transpose(0, 2, 1) @ slopes
            if self.bias is not None:
                dbias += slopes.sum(axis=1)
        dweight = dmatrix.reshape(g, kh, kw, -1, o // g).transpose(0, 4, 3, 1, 2)
        self.weight.accumulate(np.ascontiguousarray(dweight).reshape(self.weight.data.shape))
        if self.bias is not None:
            self.bias.accumulate(dbias.reshape(o))
        return self._input_gradient(dy, x)

    def _input_gradient(self, dy: Array, x: Array) -> Array:
        """Σ over outputs and places of dy·w: for stride 1 the correlation of dy with the kernel turned round, else scattered."""
        dx = empty_nchw((x.shape[0], x.shape[1], x.shape[2], x.shape[3]), x.dtype, is_channels_last(x))
        spans = [d * (k - 1) for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        (top, bottom), (left, right) = (
            (span - before, span - after) for span, (before, after) in zip(spans, self._pads, strict=True)
        )
        if self.stride == (1, 1) and min(top, bottom, left, right) >= 0:
            turned = self._grouped_weight()[..., ::-1, ::-1].transpose(0, 3, 4, 1, 2)
            pads = ((top, bottom), (left, right))
            _correlate(dy, turned, _Geometry(self.kernel_size, (1, 1), self.dilation, pads, self.groups), None, dx)
        else:
            _scatter(dy, self._grouped_weight().transpose(0, 1, 3, 4, 2), self._geometry(), dx)
        return dx

    def _geometry(self) -> _Geometry:
        return _Geometry(self.kernel_size, self.stride, self.dilation, self._pads, self.groups)

    def _grouped_weight(self) -> Array:
        """The weights as (groups, O/groups, C/groups, kH, kW)."""
        g = self.groups
        return self.weight.data.reshape(g, self.out_channels // g, self.in_channels // g, *self.kernel_size)

    def extra_repr(self) -> str:
        """Sizes and what differs from the defaults."""
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        defaults = {"stride": (1, 1), "padding": 0, "dilation": (1, 1), "groups": 1}
        parts += [f"{name}={getattr(self, name)}" for name, usual in defaults.items() if getattr(self, name) != usual]
        return ", ".join([*parts, f"bias={self.bias is not None}"])


def _windows(x: Array, out: Pair, geometry: _Geometry) -> Iterator[tuple[slice, Array]]:
    """(samples, their windows as (groups, n·H'·W', kH·kW·C/groups)), block after block in one buffer."""
    (kh, kw), (sh, sw), (dh, dw), ((top, bottom), (left, right)), g = geometry
    (n, c, h, w), (oh, ow) = x.shape, out
    per_sample = oh * ow * kh * kw * c
    block = max(1, min(n, _BLOCK_BYTES // max(1, per_sample * x.itemsize)))
    as_they_are = (kh, kw, sh, sw, g) == (1, 1, 1, 1, 1)
    image = (
        np.zeros((block, h + top + bottom, w + left + right, c), x.dtype)
        if any(geometry.pads[0] + geometry.pads[1])
        else None
    )
    gathered = None if as_they_are else np.empty(block * per_sample, x.dtype)
    for start in range(0, n, block):
        rows = slice(start, min(n, start + block))
        count = rows.stop - start
        source = x[rows].transpose(0, 2, 3, 1)
        if image is not None:
            image[:count, top : top + h, left : left + w] = source
            source = image[:count]
        source = np.ascontiguousarray(source)
        if gathered is None:
            yield rows, source.reshape(1, count * oh * ow, c)
            continue
        s_n, s_h, s_w, s_c = source.strides
        view = as_strided(
            source,
            (g, count, oh, ow, kh, kw, c // g),
            (s_c * (c // g), s_n, s_h * sh, s_w * sw, s_h * dh, s_w * dw, s_c),
            writeable=False,
        )
        windows = gathered[: count * per_sample]
        windows.reshape(view.shape)[...] = view
        yield rows, windows.reshape(g, count * oh * ow, kh * kw * c // g)


def _correlate(x: Array, w: Array, geometry: _Geometry, bias: Array | None, y: Array) -> None:
    """y ← windows of x times w, (groups, kH, kW, C/groups, O/groups), plus bias."""
    g, outputs = geometry.groups, w.shape[4]
    o, (oh, ow) = g * outputs, (y.shape[2], y.shape[3])
    matrix = np.ascontiguousarray(w).reshape(g, -1, outputs)
    y_last = y.transpose(0, 2, 3, 1)
    straight = g == 1 and y_last.flags.c_contiguous
    for rows, windows in _windows(x, (oh, ow), geometry):
        product = y_last[rows].reshape(1, -1, o) if straight else np.empty((g, windows.shape[1], outputs), y.dtype)
        np.matmul(windows, matrix, out=product)
        if bias is not None:
            product += bias.reshape(g, 1, outputs)
        if not straight:
            y_last[rows] = product.transpose(1, 0, 2).reshape(-1, oh, ow, o)


def _scatter(dy: Array, w: Array, geometry: _Geometry, dx: Array) -> None:
    """dx ← dy times w, (groups, O/groups, kH, kW, C/groups), each product added at its place in its window."""
    (kh, kw), (sh, sw), (dh, dw), ((top, bottom), (left, right)), g = geometry
    (n, c, h, width), (oh, ow) = dx.shape, (dy.shape[2], dy.shape[3])
    matrix = np.ascontiguousarray(w).reshape(g, w.shape[1], -1)
    dx_last, dy_last = dx.transpose(0, 2, 3, 1), dy.transpose(0, 2, 3, 1)
    block = max(1, _BLOCK_BYTES // max(1, oh * ow * kh * kw * c * dx.itemsize))
    for start in range(0, n, block):
        rows = slice(start, min(n, start + block))
        count = rows.stop - start
        products = (_by_group(dy_last[rows], g) @ matrix).reshape(g, count, oh, ow, kh, kw, c // g)
        image = np.zeros((count, h + top + bottom, width + left + right, g, c // g), dx.dtype)
        for i in range(kh):
            for j in range(kw):
                y0, x0 = i * dh, j * dw
                place = image[:, y0 : y0 + (oh - 1) * sh + 1 : sh, x0 : x0 + (ow - 1) * sw + 1 : sw]
                place += products[:, :, :, :, i, j].transpose(1, 2, 3, 0, 4)
        dx_last[rows] = image.reshape(*image.shape[:3], c)[:, top : top + h, left : left + width]


def _by_group(dy_last: Array, groups: int) -> Array:
    """An (n, H', W', O) array as a contiguous (groups, n·H'·W', O/groups)."""
    outputs = dy_last.shape[3]
    return np.ascontiguousarray(dy_last.reshape(-1, groups, outputs // groups).transpose(1, 0, 2))
