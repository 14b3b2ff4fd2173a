"""Max and average pooling: one pass over the array per place in the window, each a strided view.

No windows are gathered: place (i, j) of every window is a view of the padded input, and pooling is the maximum, or the sum, of
those views. Views keep the layout, so channels-last memory stays channels-last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ._common import Array, as_pair, empty_nchw, is_channels_last, require_gradient
from .module import Module

__all__ = ["AvgPool2d", "MaxPool2d"]

Pair = tuple[int, int]


class _Pool2d(Module):
    """The geometry that both poolings share."""

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None,
        padding: int | Sequence[int],
        dilation: int | Sequence[int],
        ceil_mode: bool,
    ) -> None:
        name = type(self).__name__
        self.kernel_size = as_pair(name, "kernel_size", kernel_size, 1)
        self.stride = as_pair(name, "stride", kernel_size if stride is None else stride, 1)
        self.padding = as_pair(name, "padding", padding, 0)
        self.dilation = as_pair(name, "dilation", dilation, 1)
        self.ceil_mode = bool(ceil_mode)
        if any(2 * p > k for p, k in zip(self.padding, self.kernel_size, strict=True)):
            raise ValueError(
                f"{name}: padding must be at most half of kernel_size, got {self.padding} and {self.kernel_size}"
            )

    def _check(self, x: Array) -> None:
        if not isinstance(x, np.ndarray) or x.dtype.kind not in "fV":
            raise TypeError(
                f"{type(self).__name__}: x must be a floating numpy array, got {getattr(x, 'dtype', type(x))}"
            )
        if x.ndim != 4:
            raise ValueError(f"{type(self).__name__}: x must have the axes (N, C, H, W), got shape {x.shape}")

    def _geometry(self, x: Array) -> tuple[Pair, Pair]:
        """(output size, padded input size), by torch's rule: no window starts beyond the input and its left padding."""
        outs, sizes = [], []
        for size, k, s, p, d in zip(
            x.shape[2:], self.kernel_size, self.stride, self.padding, self.dilation, strict=True
        ):
            span = d * (k - 1) + 1
            room = size + 2 * p - span
            out = (-(-room // s) if self.ceil_mode else room // s) + 1
            if self.ceil_mode and (out - 1) * s >= size + p:
                out -= 1
            if out < 1 or size == 0:
                raise ValueError(f"{type(self).__name__}: the window spans {span}, too much for x of shape {x.shape}")
            outs.append(out)
            sizes.append(max(size + 2 * p, (out - 1) * s + span))
        return (outs[0], outs[1]), (sizes[0], sizes[1])

    def _padded(self, x: Array, size: Pair, fill: float) -> Array:
        """`x` inside a border of `fill`, or `x` itself where there is no border."""
        if size == x.shape[2:]:
            return x
        (n, c, h, w), (top, left) = x.shape, self.padding
        result = empty_nchw((n, c, *size), x.dtype, is_channels_last(x))
        result.fill(fill)
        result[:, :, top : top + h, left : left + w] = x
        return result

    def _places(self, padded: Array, out: Pair) -> Iterator[Array]:
        """The view of each place in the window, over all windows, row by row."""
        (sh, sw), (dh, dw), (oh, ow) = self.stride, self.dilation, out
        for i in range(self.kernel_size[0]):
            for j in range(self.kernel_size[1]):
                top, left = i * dh, j * dw
                yield padded[:, :, top : top + (oh - 1) * sh + 1 : sh, left : left + (ow - 1) * sw + 1 : sw]

    def _inner(self, padded: Array, x: Array) -> Array:
        """The part of a padded array that is `x`'s, as an array of its own memory where there was a border."""
        if padded.shape == x.shape:
            return padded
        (h, w), (top, left) = x.shape[2:], self.padding
        result = empty_nchw(x.shape, padded.dtype, is_channels_last(x))
        result[...] = padded[:, :, top : top + h, left : left + w]
        return result

    def extra_repr(self) -> str:
        """The geometry."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class MaxPool2d(_Pool2d):
    """y = the largest value in each window; its gradient goes to the first place that holds it, as in torch.

    x: (N, C, H, W); y: (N, C, H', W') with H' = (H + 2·padding − dilation·(kernel − 1) − 1)//stride + 1, rounded up with
    `ceil_mode`. The border counts as −inf. A NaN in a window is its maximum.

    Raises ValueError when padding exceeds half the kernel or a window exceeds the input.
    """

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)

    def forward(self, x: Array) -> Array:
        """The maxima; keeps references to the padded input and the output."""
        self._check(x)
        out, size = self._geometry(x)
        padded = self._padded(x, size, -np.inf)
        places = self._places(padded, out)
        y = empty_nchw((*x.shape[:2], *out), x.dtype, is_channels_last(x))
        y[...] = next(places)
        for place in places:
            np.maximum(y, place, out=y)
        self.save_for_backward((x, padded, y))
        return y

    def backward(self, dy: Array) -> Array:
        """dx: each dy at the first maximum of its window, summed where windows overlap."""
        x, padded, y = self.saved_for_backward()
        require_gradient("MaxPool2d", dy, y.shape, y.dtype)
        dpadded = empty_nchw(padded.shape, dy.dtype, is_channels_last(x))
        dpadded.fill(0)
        open_windows = np.ones_like(y, dtype=bool)
        out = (y.shape[2], y.shape[3])
        for place, target in zip(self._places(padded, out), self._places(dpadded, out), strict=True):
            here = (place == y) | np.isnan(place)
            here &= open_windows
            open_windows &= ~here
            target += np.where(here, dy, dy.dtype.type(0))
        return self._inner(dpadded, x)


class AvgPool2d(_Pool2d):
    """y = the mean of each window.

    x: (N, C, H, W); y: (N, C, H', W') with H' = (H + 2·padding − kernel)//stride + 1, rounded up with `ceil_mode`. The border
    counts as zeros, and in the number of elements unless `count_include_pad=False`; `divisor_override` replaces that number.

    Raises ValueError when padding exceeds half the kernel or a window exceeds the input.
    """

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, 1, ceil_mode)
        self.count_include_pad = bool(count_include_pad)
        if divisor_override == 0:
            raise ValueError("AvgPool2d: divisor_override must not be 0")
        self.divisor_override = divisor_override

    def _divisors(self, x: Array, out: Pair) -> Array:
        """What each window's sum is divided by, broadcast over N and C."""
        if self.divisor_override is not None:
            return np.array(self.divisor_override, x.dtype)
        counts = []
        for size, o, k, s, p in zip(x.shape[2:], out, self.kernel_size, self.stride, self.padding, strict=True):
            start = np.arange(o) * s - p
            stop = np.minimum(start + k, size + p)
            if not self.count_include_pad:
                start, stop = np.maximum(start, 0), np.minimum(stop, size)
            counts.append(stop - start)
        return np.multiply.outer(counts[0], counts[1]).astype(x.dtype)

    def forward(self, x: Array) -> Array:
        """The means; keeps a reference to `x` for its shape and layout."""
        self._check(x)
        out, size = self._geometry(x)
        places = self._places(self._padded(x, size, 0.0), out)
        y = empty_nchw((*x.shape[:2], *out), x.dtype, is_channels_last(x))
        y[...] = next(places)
        for place in places:
            y += place
        y /= self._divisors(x, out)
        self.save_for_backward((x, out, size))
        return y

    def backward(self, dy: Array) -> Array:
        """dx: dy / number, spread over each window."""
        x, out, size = self.saved_for_backward()
        require_gradient("AvgPool2d", dy, (*x.shape[:2], *out), x.dtype)
        share = dy / self._divisors(x, out)
        dpadded = empty_nchw((*x.shape[:2], *size), dy.dtype, is_channels_last(x))
        dpadded.fill(0)
        for target in self._places(dpadded, out):
            target += share
        return self._inner(dpadded, x)
