"""Batch norm folded into the layer before it: at inference both are affine, so one layer does for two.

y = s·(W·x + b − mean) + beta with s = gamma/sqrt(var + eps) is a layer of weights s·W and bias s·(b − mean) + beta. Computed in
float64 and rounded once, so tiny variances and gamma = 0 are as exact as the type allows.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TypeVar

import numpy as np

from .activation import ReLU
from .conv import Conv2d
from .linear import Linear
from .module import Identity, Module, Parameter, Sequential
from .normalization import BatchNorm1d, BatchNorm2d
from .weight_norm import NormedWeight, remove_weight_norm

__all__ = ["fold_batch_norm"]

M = TypeVar("M", bound=Module)


def fold_batch_norm(model: M) -> M:
    """A copy of `model` for inference, each batch norm that follows a Linear or Conv2d folded into it.

    Looked for in every `Sequential` inside, where the order of layers is known: Linear then BatchNorm1d, Conv2d then BatchNorm2d,
    channels on axis 1. The norm's place is taken by an Identity, or a ReLU if it had one fused, so that names stay. Weight
    norm on a folded layer is removed; a weight that another layer shares is folded here alone. Norms without running
    statistics, and layers used in several places, are left as they are. The copy is in evaluation mode; `model` is not changed.

    A BatchNorm1d after a Linear is taken to see (N, C). With (N, L, C), whose channels are L, the folded model's outputs are
    wrong wherever L happens to equal C.
    """
    result = copy.deepcopy(model).eval()
    for module in list(result.modules()):
        if not isinstance(module, Sequential):
            continue
        for (_, first), (name, second) in pairwise(list(module.named_children())):
            pair = _foldable(first, second)
            if pair is not None and _uses(result, first) == 1 and _uses(result, second) == 1:
                _fold(*pair)
                setattr(module, name, ReLU().eval() if pair[1].activation else Identity().eval())
    return result


def _foldable(layer: Module, norm: Module) -> tuple[Linear | Conv2d, BatchNorm1d | BatchNorm2d] | None:
    """The two, if they are a layer and the norm of its output channels with running statistics."""
    if isinstance(layer, Linear) and isinstance(norm, BatchNorm1d):
        channels = layer.out_features
    elif isinstance(layer, Conv2d) and isinstance(norm, BatchNorm2d):
        channels = layer.out_channels
    else:
        return None
    fits = norm.track_running_stats and norm.axis == 1 and norm.num_features == channels
    return (layer, norm) if fits else None


def _uses(model: Module, layer: Module) -> int:
    """How many attributes in the model hold this layer."""
    return sum(child is layer for module in model.modules() for child in module.children())


def _fold(layer: Linear | Conv2d, norm: BatchNorm1d | BatchNorm2d) -> None:
    if isinstance(layer.weight, NormedWeight):
        remove_weight_norm(layer)
    assert norm.running_mean is not None and norm.running_var is not None
    w, channels = layer.weight.data, norm.num_features
    scale = 1.0 / np.sqrt(norm.running_var.astype(np.float64) + norm.eps)
    if norm.weight is not None:
        scale *= norm.weight.data.astype(np.float64)
    bias = np.zeros(channels) if layer.bias is None else layer.bias.data.astype(np.float64)
    bias = scale * (bias - norm.running_mean.astype(np.float64))
    if norm.bias is not None:
        bias += norm.bias.data.astype(np.float64)
    # A parameter of its own: another layer may share the old one.
    layer.weight = Parameter((w * scale.reshape(-1, *(1,) * (w.ndim - 1))).astype(w.dtype))
    layer.bias = Parameter(bias.astype(w.dtype))
