"""Two-dimensional convolution as a matrix product: windows laid out as rows (im2col), then NumPy's BLAS.

The windows are gathered from a channels-last copy, where a row of a window, kernel width × channels, is one contiguous run;
gathering from NCHW would copy runs of a few elements. Samples are taken in blocks whose windows fit the cache, so the gathered
windows, kernel height × width times as large as the input, never travel to memory; backward gathers them again rather than
keep them. The output has the layout of the input: NCHW, or channels-last memory under an NCHW shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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

# Bytes of gathered windows per block. From 1 to 8 MB the step time of 3×3 layers on 8×8 to 28×28 images varied by less than
# the noise; below it the calls cost, above it memory does.
_BLOCK_BYTES = 2 << 20


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

    def _matrix(self) -> Array:
        """The weights as (groups, kH·kW·C/groups, O/groups), the order of a gathered window."""
        g, (kh, kw) = self.groups, self.kernel_size
        w = self.weight.data.reshape(g, self.out_channels // g, self.in_channels // g, kh, kw)
        return np.ascontiguousarray(w.transpose(0, 3, 4, 2, 1)).reshape(g, -1, self.out_channels // g)

    def _blocks(self, x: Array, out_hw: tuple[int, int]) -> Iterator[tuple[slice, Array]]:
        """(samples, their windows as (groups, n·H'·W', kH·kW·C/groups)), block after block in one buffer."""
        (n, c, h, w), g, (kh, kw) = x.shape, self.groups, self.kernel_size
        (top, bottom), (left, right) = self._pads
        (oh, ow), (sh, sw), (dh, dw) = out_hw, self.stride, self.dilation
        per_sample = oh * ow * kh * kw * c
        block = max(1, min(n, _BLOCK_BYTES // max(1, per_sample * x.itemsize)))
        padded = any((top, bottom, left, right))
        as_they_are = (kh, kw, sh, sw, g) == (1, 1, 1, 1, 1)
        image = np.zeros((block, h + top + bottom, w + left + right, c), x.dtype) if padded else None
        windows = None if as_they_are else np.empty(block * per_sample, x.dtype)
        for start in range(0, n, block):
            rows = slice(start, min(n, start + block))
            count = rows.stop - start
            source = x[rows].transpose(0, 2, 3, 1)
            if image is not None:
                image[:count, top : top + h, left : left + w] = source
                source = image[:count]
            if windows is None:
                yield rows, np.ascontiguousarray(source).reshape(1, count * oh * ow, c)
                continue
            source = np.ascontiguousarray(source)
            s_n, s_h, s_w, s_c = source.strides
            view = as_strided(
                source,
                (g, count, oh, ow, kh, kw, c // g),
                (s_c * (c // g), s_n, s_h * sh, s_w * sw, s_h * dh, s_w * dw, s_c),
                writeable=False,
            )
            gathered = windows[: count * per_sample]
            gathered.reshape(view.shape)[...] = view
            yield rows, gathered.reshape(g, count * oh * ow, kh * kw * c // g)

    def forward(self, x: Array) -> Array:
        """The convolution; keeps a reference to `x`."""
        require_input("Conv2d", x, self.weight, 1, self.in_channels, 4)
        oh, ow = self._output_size(x)
        n, g, o = x.shape[0], self.groups, self.out_channels
        channels_last = is_channels_last(x)
        matrix = self._matrix()
        y = empty_nchw((n, o, oh, ow), x.dtype, channels_last)
        y_last = y.transpose(0, 2, 3, 1)
        straight = g == 1 and y_last.flags.c_contiguous
        for rows, windows in self._blocks(x, (oh, ow)):
            product = y_last[rows].reshape(1, -1, o) if straight else np.empty((g, windows.shape[1], o // g), x.dtype)
            np.matmul(windows, matrix, out=product)
            if self.bias is not None:
                product += self.bias.data.reshape(g, 1, o // g)
            if not straight:
                y_last[rows] = product.reshape(g, -1, oh, ow, o // g).transpose(1, 2, 3, 0, 4).reshape(-1, oh, ow, o)
        self.save_for_backward(x)
        return y

    def backward(self, dy: Array) -> Array:
        """dx by scattering dy·wᵀ back over the windows; adds windowsᵀ·dy to the weight's gradient and Σdy to the bias's."""
        x: Array = self.saved_for_backward()
        out_hw = oh, ow = self._output_size(x)
        (n, c, h, w), g, o, (kh, kw) = x.shape, self.groups, self.out_channels, self.kernel_size
        (sh, sw), (dh, dw), ((top, bottom), (left, right)) = self.stride, self.dilation, self._pads
        require_gradient("Conv2d", dy, (n, o, oh, ow))
        transposed = self._matrix().transpose(0, 2, 1)
        dmatrix = np.zeros((g, kh * kw * c // g, o // g), x.dtype)
        dbias = np.zeros((g, o // g), x.dtype)
        dx = empty_nchw((n, c, h, w), x.dtype, is_channels_last(x))
        dx_last = dx.transpose(0, 2, 3, 1)
        dy_last = dy.transpose(0, 2, 3, 1)
        for rows, windows in self._blocks(x, out_hw):
            count = rows.stop - rows.start
            grouped = dy_last[rows].reshape(count * oh * ow, g, o // g).transpose(1, 0, 2)
            slopes = np.ascontiguousarray(grouped, x.dtype)
            dmatrix += windows.transpose(0, 2, 1) @ slopes
            if self.bias is not None:
                dbias += slopes.sum(axis=1)
            dwindows = (slopes @ transposed).reshape(g, count, oh, ow, kh, kw, c // g)
            dimage = np.zeros((count, h + top + bottom, w + left + right, g, c // g), x.dtype)
            for i in range(kh):
                for j in range(kw):
                    top_i, left_j = i * dh, j * dw
                    place = dimage[:, top_i : top_i + (oh - 1) * sh + 1 : sh, left_j : left_j + (ow - 1) * sw + 1 : sw]
                    place += dwindows[:, :, :, :, i, j].transpose(1, 2, 3, 0, 4)
            dx_last[rows] = dimage.reshape(count, h + top + bottom, w + left + right, c)[
                :, top : top + h, left : left + w
            ]
        dweight = dmatrix.reshape(g, kh, kw, c // g, o // g).transpose(0, 4, 3, 1, 2)
        self.weight.accumulate(np.ascontiguousarray(dweight).reshape(self.weight.data.shape))
        if self.bias is not None:
            self.bias.accumulate(dbias.reshape(o))
        return dx

    def extra_repr(self) -> str:
        """Sizes and what differs from the defaults."""
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        defaults = {"stride": (1, 1), "padding": 0, "dilation": (1, 1), "groups": 1}
        parts += [f"{name}={getattr(self, name)}" for name, usual in defaults.items() if getattr(self, name) != usual]
        return ", ".join([*parts, f"bias={self.bias is not None}"])
