"""The networks that the commands train, built in one place: a convolutional one for images, a fully connected one for
tables.

Every hidden layer is product, norm, activation. The ReLU is fused into the norm where the norm can do that, and a layer
whose bias the norm would remove again (batch and instance norm subtract the mean per channel) has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastnorm import nn
from fastnorm.cli.common import CommandError

__all__ = ["NORMS", "NORM_FUNCTIONS", "convolutional", "hidden", "network", "perceptron"]

# The norm's name on the command line -> the function that does its work.
NORM_FUNCTIONS = {
    "batch": "batch_norm",
    "layer": "layer_norm",
    "group": "group_norm",
    "instance": "instance_norm",
    "switchable": "switchable_norm",
    "weight": "weight_norm",
    "rms": "rms_norm",
}
NORMS = ("none", *NORM_FUNCTIONS)
# Norms that subtract each channel's own mean: a bias before them has no effect.
REMOVES_BIAS = ("batch", "instance")
IMAGES_ONLY = ("instance", "switchable")


def network(
    norm: str, sample_shape: Sequence[int], classes: int, *, layers: int, width: int, dropout: float = 0.0
) -> nn.Sequential:
    """The network for samples of `sample_shape`: (C, H, W) or (features,)."""
    if len(sample_shape) == 3:
        return convolutional(norm, sample_shape, classes, layers=layers, width=width, dropout=dropout)
    return perceptron(norm, sample_shape[0], classes, [width] * layers, dropout=dropout)


def convolutional(
    norm: str, sample_shape: Sequence[int], classes: int, *, layers: int, width: int, dropout: float = 0.0
) -> nn.Sequential:
    """`layers` 3 x 3 convolutions in two stages of `width` and 2 * `width` channels, each stage halving the picture."""
    channels, height, wide = sample_shape
    stack: list[nn.Module] = []
    for stage, count in enumerate(((layers + 1) // 2, layers // 2)):
        for _ in range(count):
            features = width * (1 + stage)
            product = nn.Conv2d(channels, features, 3, padding=1, bias=norm not in REMOVES_BIAS)
            stack += hidden(norm, product, (features, height, wide))
            channels = features
        if count and min(height, wide) >= 2:
            stack.append(nn.MaxPool2d(2))
            height, wide = height // 2, wide // 2
    stack.append(nn.Flatten())
    if dropout:
        stack.append(nn.Dropout(dropout))
    stack.append(nn.Linear(channels * height * wide, classes))
    return nn.Sequential(*stack)


def perceptron(
    norm: str,
    features: int,
    classes: int,
    widths: Sequence[int],
    *,
    activation: str = "relu",
    dropout: float = 0.0,
) -> nn.Sequential:
    """Fully connected layers of `widths` units."""
    if norm in IMAGES_ONLY:
        raise CommandError(f"--norm {norm} normalises over the pixels of images; tables (samples, features) have none")
    stack: list[nn.Module] = []
    for width in widths:
        stack += hidden(norm, nn.Linear(features, width, bias=norm not in REMOVES_BIAS), (width,), activation)
        if dropout:
            stack.append(nn.Dropout(dropout))
        features = width
    stack.append(nn.Linear(features, classes))
    return nn.Sequential(*stack)


def hidden(norm: str, product: Any, shape: tuple[int, ...], activation: str = "relu") -> list[nn.Module]:
    """`product`, then the norm for its output of `shape` (without the batch axis), then the activation."""
    channels, image = shape[0], len(shape) == 3
    fused = "relu" if activation == "relu" else None
    # Groups of at least four channels, at most the paper's 32 groups.
    groups = next(g for g in range(min(32, max(1, channels // 4)), 0, -1) if channels % g == 0)
    match norm:
        case "none":
            return [product, _activation(activation)]
        case "weight":
            nn.weight_norm(product)
            return [product, _activation(activation)]
        case "batch":
            layer: Any = (nn.BatchNorm2d if image else nn.BatchNorm1d)(channels, activation=fused)
        case "group":
            layer = nn.GroupNorm(groups, channels, activation=fused)
        case "instance":
            layer = nn.InstanceNorm2d(channels, affine=True, activation=fused)
        case "layer":
            layer, fused = nn.LayerNorm(shape), None
        case "rms":
            layer, fused = nn.RMSNorm(shape), None
        case "switchable":
            layer, fused = nn.SwitchableNorm2d(channels), None
        case _:
            raise CommandError(f"--norm must be one of {', '.join(NORMS)}, got {norm!r}")
    return [product, layer] if fused else [product, layer, _activation(activation)]


def _activation(name: str) -> nn.Module:
    return {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}[name]()
