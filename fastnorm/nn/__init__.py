"""Layers for a NumPy training loop: torch's names and state, `layer(x)` and `layer.backward(dy)`, the kernels underneath.

    model = nn.Sequential(nn.Linear(64, 100, bias=False), nn.BatchNorm1d(100, activation="relu"), nn.Linear(100, 10))
    loss = nn.CrossEntropyLoss()
    value = loss(model(x), labels)
    model.zero_grad()
    model.backward(loss.backward())
    optimizer.step()

Files by theme: `module` (Module, Parameter, Sequential), `linear`, `conv`, `pooling`, `activation`, `normalization`, `dropout`,
`loss`, `weight_norm`, `fold`, `recalibrate`, and `rng` for the seed.
"""

from .activation import Flatten, ReLU, Sigmoid, Softmax, Tanh
from .conv import Conv2d
from .dropout import Dropout
from .fold import fold_batch_norm
from .linear import Linear
from .loss import CrossEntropyLoss
from .module import Identity, LoadResult, Module, Parameter, Sequential, no_grad
from .normalization import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    SwitchableNorm2d,
)
from .pooling import AvgPool2d, MaxPool2d
from .recalibrate import recalibrate
from .rng import get_rng_state, manual_seed, set_rng_state
from .sample_norms import GroupNorm, LayerNorm, RMSNorm
from .weight_norm import remove_weight_norm, weight_norm

__all__ = [
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "GroupNorm",
    "Identity",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "Linear",
    "LoadResult",
    "MaxPool2d",
    "Module",
    "Parameter",
    "RMSNorm",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "SwitchableNorm2d",
    "Tanh",
    "fold_batch_norm",
    "get_rng_state",
    "manual_seed",
    "no_grad",
    "recalibrate",
    "remove_weight_norm",
    "set_rng_state",
    "weight_norm",
]
