"""Batch norm's parameters and running statistics in and out of other frameworks: one function each way.

Frameworks agree on the formula and differ in names, order, defaults, the meaning of momentum, and what the running variance holds.
Every `from_…(arrays, settings)` reads one framework's arrays and settings into a `BatchNormState`, every `to_…(state)` gives them
back as `(arrays, settings)` in the form that the framework's own layer takes. Settings left out are that framework's
defaults, not ours; names that are none of its settings are refused. Arrays are copied, never rounded, and a momentum that was
turned into the other convention remembers what it came from, so a state that goes out and comes back is the same, except that
a framework which has no "without gamma" or "without beta" gets ones or zeros in their place. The conventions are tabulated
in docs/conventions.md.

No framework is imported: tensors that `numpy.asarray` reads will do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnorm.nn.module import Parameter
from fastnorm.nn.normalization import BatchNorm1d, BatchNorm2d, BatchNorm3d

__all__ = [
    "BatchNormState",
    "from_caffe",
    "from_keras",
    "from_layer",
    "from_mxnet",
    "from_onnx",
    "from_paddle",
    "from_torch",
    "to_caffe",
    "to_keras",
    "to_layer",
    "to_mxnet",
    "to_onnx",
    "to_paddle",
    "to_torch",
]

Array = NDArray[Any]
Settings = Mapping[str, Any]

# What each framework's layer can be told. Beside those read here: what has no part in the arithmetic of inference.
_TORCH_SETTINGS = ("num_features", "eps", "momentum", "affine", "track_running_stats", "device", "dtype")
_KERAS_SETTINGS = (
    *("axis", "momentum", "epsilon", "center", "scale", "synchronized", "name", "trainable", "dtype"),
    *("beta_initializer", "gamma_initializer", "moving_mean_initializer", "moving_variance_initializer"),
    *("beta_regularizer", "gamma_regularizer", "beta_constraint", "gamma_constraint", "activity_regularizer"),
    # Batch renormalization, and Keras 2
    *("renorm", "renorm_clipping", "renorm_momentum", "fused", "virtual_batch_size", "adjustment", "batch_input_shape"),
)
_ONNX_SETTINGS = ("epsilon", "momentum", "training_mode", "spatial", "is_test", "consumed_inputs")
_CAFFE_SETTINGS = ("eps", "moving_average_fraction", "use_global_stats")
_MXNET_SETTINGS = (
    *("eps", "momentum", "fix_gamma", "axis", "use_global_stats", "output_mean_var", "cudnn_off"),
    *("min_calib_range", "max_calib_range"),
    # Gluon
    *("epsilon", "center", "scale", "in_channels", "beta_initializer", "gamma_initializer"),
    *("running_mean_initializer", "running_variance_initializer"),
)
_PADDLE_SETTINGS = (
    *("num_features", "momentum", "epsilon", "weight_attr", "bias_attr", "data_format", "use_global_stats", "name"),
)
_PADDLE_AXES = {"NC": 1, "NCL": 1, "NCHW": 1, "NCDHW": 1, "NLC": -1, "NHWC": -1, "NDHWC": -1}


@dataclass(eq=False)
class BatchNormState:
    """One batch norm in this package's (and torch's) terms: y = weight·(x − running_mean)/sqrt(running_var + eps) + bias.

    All arrays have shape (C,); weight and bias may be None. `momentum` is the weight of the new batch,
    running ← (1 − momentum)·running + momentum·batch, or None for the cumulative average. `axis` is the channel axis.

    Raises TypeError for an array that is not floating; ValueError for one of another shape, a running_var or eps below 0 or NaN,
    an infinite eps, a momentum outside [0, 1], or a negative num_batches_tracked.
    """

    running_mean: Array
    running_var: Array
    weight: Array | None = None
    bias: Array | None = None
    eps: float = 1e-5
    momentum: float | None = 0.1
    axis: int = 1
    num_batches_tracked: int = 0

    def __post_init__(self) -> None:
        self.running_mean = _vector("running_mean", self.running_mean)
        size = self.running_mean.size
        self.running_var = _vector("running_var", self.running_var, size)
        self.weight = None if self.weight is None else _vector("weight", self.weight, size)
        self.bias = None if self.bias is None else _vector("bias", self.bias, size)
        self.eps = float(self.eps)
        if self.momentum is not None and not isinstance(self.momentum, _Complement):
            self.momentum = float(self.momentum)
        self.num_batches_tracked = int(self.num_batches_tracked)
        fine = self.running_var >= 0
        if not fine.all():
            first = int(np.argmin(fine))
            raise ValueError(
                f"running_var: expected values of at least 0, got {self.running_var[first]} at index {first}"
            )
        if not 0.0 <= self.eps < math.inf:
            raise ValueError(f"eps: expected a finite number of at least 0, got {self.eps!r}")
        if self.momentum is not None and not 0.0 <= self.momentum <= 1.0:
            raise ValueError(f"momentum: expected a number in [0, 1] or None, got {self.momentum!r}")
        if self.num_batches_tracked < 0:
            raise ValueError(f"num_batches_tracked: expected at least 0, got {self.num_batches_tracked}")

    @property
    def num_features(self) -> int:
        """C, the number of channels."""
        return int(self.running_mean.size)


# --------------------------------------------------------------------------------------------------- this package's layers


def from_layer(layer: BatchNorm1d | BatchNorm2d | BatchNorm3d) -> BatchNormState:
    """The state of a `fastnorm.nn` layer. Raises ValueError for a layer that tracks no running statistics."""
    if layer.running_mean is None or layer.running_var is None or layer.num_batches_tracked is None:
        raise ValueError("from_layer: the layer tracks no running statistics")
    return BatchNormState(
        layer.running_mean,
        layer.running_var,
        None if layer.weight is None else layer.weight.data,
        None if layer.bias is None else layer.bias.data,
        layer.eps,
        layer.momentum,
        layer.axis,
        int(layer.num_batches_tracked),
    )


def to_layer(state: BatchNormState, dimensions: int = 2) -> BatchNorm1d | BatchNorm2d | BatchNorm3d:
    """A BatchNorm1d, 2d or 3d, by `dimensions`, in evaluation mode, of the type of the running mean."""
    kinds: dict[int, type[BatchNorm1d | BatchNorm2d | BatchNorm3d]] = {1: BatchNorm1d, 2: BatchNorm2d, 3: BatchNorm3d}
    if dimensions not in kinds:
        raise ValueError(f"to_layer: dimensions must be 1, 2 or 3, got {dimensions!r}")
    layer = kinds[dimensions](
        state.num_features, state.eps, state.momentum, affine=False, axis=state.axis, dtype=state.running_mean.dtype
    )
    layer.weight = None if state.weight is None else Parameter(state.weight.copy())
    layer.bias = None if state.bias is None else Parameter(state.bias.copy())
    layer.affine = layer.weight is not None
    layer.register_buffer("running_mean", state.running_mean.copy())
    layer.register_buffer("running_var", state.running_var.copy())
    layer.register_buffer("num_batches_tracked", np.array(state.num_batches_tracked, np.int64))
    layer.eval()
    return layer


# -------------------------------------------------------------------------------------------------------------- frameworks


def from_torch(arrays: Mapping[str, Any], settings: Settings | None = None, *, prefix: str = "") -> BatchNormState:
    """From a state dictionary: weight, bias, running_mean, running_var, num_batches_tracked, each after `prefix`.

    Settings: eps (1e-5), momentum (0.1, of the new batch). Raises ValueError for a missing running statistic.
    """
    given = _known("from_torch", settings, _TORCH_SETTINGS)
    return BatchNormState(
        _named("from_torch", arrays, prefix, "running_mean"),
        _named("from_torch", arrays, prefix, "running_var"),
        arrays.get(f"{prefix}weight"),
        arrays.get(f"{prefix}bias"),
        given.get("eps", 1e-5),
        given.get("momentum", 0.1),
        num_batches_tracked=arrays.get(f"{prefix}num_batches_tracked", 0),
    )


def to_torch(state: BatchNormState, *, prefix: str = "") -> tuple[dict[str, Array], dict[str, Any]]:
    """A state dictionary and the arguments of `torch.nn.BatchNorm*d`. Only one of weight and bias None: the other is filled in.

    torch has the channels on axis 1 alone: ValueError for another. A channels-last state fits channels-first data as it is once
    that is said, by `state.axis = 1`.
    """
    _require_axis_1("to_torch", state)
    affine = state.weight is not None or state.bias is not None
    arrays = {"weight": _gamma(state), "bias": _beta(state)} if affine else {}
    arrays |= {
        "running_mean": state.running_mean.copy(),
        "running_var": state.running_var.copy(),
        "num_batches_tracked": np.array(state.num_batches_tracked, np.int64),
    }
    settings = {
        "num_features": state.num_features,
        "eps": state.eps,
        "momentum": state.momentum,
        "affine": affine,
    }
    return {prefix + name: array for name, array in arrays.items()}, settings


def from_keras(arrays: Sequence[Any] | Mapping[str, Any], settings: Settings | None = None) -> BatchNormState:
    """From `layer.get_weights()`, [gamma, beta, moving_mean, moving_variance], or a mapping of those names.

    Settings, as in `layer.get_config()`: axis (−1), momentum (0.99, of the old value), epsilon (1e-3), center and scale (True):
    without them beta and gamma are absent. Raises ValueError for another number of arrays, or batch renormalization.
    """
    given = _known("from_keras", settings, _KERAS_SETTINGS)
    if given.get("renorm"):
        raise ValueError("from_keras: renorm=True is batch renormalization, which has no counterpart here")
    scale, center = (_flag("from_keras", given, name, True) for name in ("scale", "center"))
    names = ["gamma"] * scale + ["beta"] * center
    names += ["moving_mean", "moving_variance"]
    if isinstance(arrays, Mapping):
        named: dict[str, Any] = {name: _named("from_keras", arrays, "", name) for name in names}
    else:
        if len(arrays) != len(names):
            raise ValueError(f"from_keras: expected {len(names)} arrays, {', '.join(names)}, got {len(arrays)}")
        named = dict(zip(names, arrays, strict=True))
    axis = given.get("axis", -1)
    if isinstance(axis, Sequence):
        if len(axis) != 1:
            raise ValueError(f"from_keras: axis must be one axis, got {list(axis)}")
        axis = axis[0]
    return BatchNormState(
        named["moving_mean"],
        named["moving_variance"],
        named.get("gamma"),
        named.get("beta"),
        given.get("epsilon", 1e-3),
        _complement(given.get("momentum", 0.99)),
        int(axis),
    )


def to_keras(state: BatchNormState) -> tuple[list[Array], dict[str, Any]]:
    """What `layer.set_weights` takes, and the arguments of `keras.layers.BatchNormalization`."""
    arrays = [
        array.copy() for array in (state.weight, state.bias, state.running_mean, state.running_var) if array is not None
    ]
    settings = {
        "axis": state.axis,
        "momentum": _decay("to_keras", state),
        "epsilon": state.eps,
        "center": state.bias is not None,
        "scale": state.weight is not None,
    }
    return arrays, settings


def from_onnx(arrays: Sequence[Any], settings: Settings | None = None) -> BatchNormState:
    """From a BatchNormalization node: its inputs 1 to 4, [scale, B, input_mean, input_var], and its attributes.

    Settings: epsilon (1e-5), momentum (0.9, of the old value). Raises ValueError for another number of arrays, or the
    `spatial=0` of operator sets before 9.
    """
    given = _known("from_onnx", settings, _ONNX_SETTINGS)
    if len(arrays) != 4:
        raise ValueError(f"from_onnx: expected 4 arrays, scale, B, input_mean, input_var, got {len(arrays)}")
    if not given.get("spatial", 1):
        raise ValueError("from_onnx: spatial=0 (statistics per element) has no counterpart here")
    scale, b, mean, var = arrays
    return BatchNormState(mean, var, scale, b, given.get("epsilon", 1e-5), _complement(given.get("momentum", 0.9)))


def to_onnx(state: BatchNormState) -> tuple[list[Array], dict[str, Any]]:
    """Inputs 1 to 4 of a BatchNormalization node and its attributes; it needs both scale and B, and channels on axis 1."""
    _require_axis_1("to_onnx", state)
    arrays = [_gamma(state), _beta(state), state.running_mean.copy(), state.running_var.copy()]
    return arrays, {"epsilon": state.eps, "momentum": _decay("to_onnx", state)}


def from_caffe(arrays: Sequence[Sequence[Any] | None], settings: Settings | None = None) -> BatchNormState:
    """From the blobs of two layers: ([mean·s, variance·s, s] of BatchNorm, [gamma] or [gamma, beta] of Scale or None).

    s is the scale factor that Caffe's moving averages are stored with; statistics are divided by it, or 0 when it is 0. Settings:
    eps (1e-5), moving_average_fraction (0.999, of the old value). Raises ValueError for other numbers of blobs.
    """
    given = _known("from_caffe", settings, _CAFFE_SETTINGS)
    if len(arrays) != 2 or arrays[0] is None or len(arrays[0]) != 3:
        raise ValueError("from_caffe: expected ([mean, variance, scale factor], [gamma, beta] or None)")
    mean, var, factor = (np.asarray(blob) for blob in arrays[0])
    if factor.size != 1:
        raise ValueError(f"from_caffe: the scale factor must be one number, got shape {factor.shape}")
    scale = [np.asarray(blob).reshape(-1) for blob in arrays[1] or ()]
    if len(scale) > 2:
        raise ValueError(f"from_caffe: the Scale layer has gamma and beta, got {len(scale)} blobs")
    s = float(factor.reshape(-1)[0])
    return BatchNormState(
        _divided(mean, s),
        _divided(var, s),
        scale[0] if scale else None,
        scale[1] if len(scale) == 2 else None,
        given.get("eps", 1e-5),
        _complement(given.get("moving_average_fraction", 0.999)),
    )


def to_caffe(state: BatchNormState) -> tuple[tuple[list[Array], list[Array] | None], dict[str, Any]]:
    """The blobs of a BatchNorm layer, its scale factor 1, those of a Scale layer (None where none is needed), and settings."""
    _require_axis_1("to_caffe", state)
    norm = [state.running_mean.copy(), state.running_var.copy(), np.ones(1, state.running_mean.dtype)]
    if state.weight is None and state.bias is None:
        scale = None
    else:
        scale = [_gamma(state)] if state.bias is None else [_gamma(state), _beta(state)]
    return (norm, scale), {"eps": state.eps, "moving_average_fraction": _decay("to_caffe", state)}


def from_mxnet(arrays: Mapping[str, Any], settings: Settings | None = None, *, prefix: str = "") -> BatchNormState:
    """From gamma, beta and moving_mean, moving_var (the operator's names) or running_mean, running_var (Gluon's), after `prefix`.

    Settings: momentum (0.9, of the old value), axis (1), eps or epsilon, and fix_gamma or its opposite, scale: where gamma is fixed
    its array is ignored, for MXNet takes it as 1. Defaults differ: the operator's are eps 1e-3 and fix_gamma, Gluon's 1e-5
    and a free gamma; the names of the arrays decide.
    """
    given = _known("from_mxnet", settings, _MXNET_SETTINGS)
    gluon = f"{prefix}running_mean" in arrays
    kind = "running" if gluon else "moving"
    eps = given.get("eps", given.get("epsilon", 1e-5 if gluon else 1e-3))
    fixed = _flag("from_mxnet", given, "fix_gamma", not _flag("from_mxnet", given, "scale", gluon))
    return BatchNormState(
        _named("from_mxnet", arrays, prefix, f"{kind}_mean"),
        _named("from_mxnet", arrays, prefix, f"{kind}_var"),
        None if fixed else _named("from_mxnet", arrays, prefix, "gamma"),
        arrays.get(f"{prefix}beta"),
        eps,
        _complement(given.get("momentum", 0.9)),
        int(given.get("axis", 1)),
    )


def to_mxnet(state: BatchNormState, *, prefix: str = "") -> tuple[dict[str, Array], dict[str, Any]]:
    """gamma, beta, moving_mean, moving_var, and the operator's attributes; a missing gamma is `fix_gamma`."""
    arrays = {
        "gamma": _gamma(state),
        "beta": _beta(state),
        "moving_mean": state.running_mean.copy(),
        "moving_var": state.running_var.copy(),
    }
    settings = {
        "eps": state.eps,
        "momentum": _decay("to_mxnet", state),
        "fix_gamma": state.weight is None,
        "axis": state.axis,
    }
    return {prefix + name: array for name, array in arrays.items()}, settings


def from_paddle(arrays: Mapping[str, Any], settings: Settings | None = None, *, prefix: str = "") -> BatchNormState:
    """From a state dictionary: weight, bias, _mean, _variance, each after `prefix`.

    Settings: momentum (0.9, of the old value), epsilon (1e-5), data_format ("NCHW"; one that ends in C is axis −1).
    """
    given = _known("from_paddle", settings, _PADDLE_SETTINGS)
    layout = given.get("data_format", "NCHW")
    if layout not in _PADDLE_AXES:
        raise ValueError(f"from_paddle: data_format must be one of {', '.join(_PADDLE_AXES)}, got {layout!r}")
    return BatchNormState(
        _named("from_paddle", arrays, prefix, "_mean"),
        _named("from_paddle", arrays, prefix, "_variance"),
        arrays.get(f"{prefix}weight"),
        arrays.get(f"{prefix}bias"),
        given.get("epsilon", 1e-5),
        _complement(given.get("momentum", 0.9)),
        _PADDLE_AXES[layout],
    )


def to_paddle(state: BatchNormState, *, prefix: str = "") -> tuple[dict[str, Array], dict[str, Any]]:
    """A state dictionary, and the arguments of `paddle.nn.BatchNorm2D` (1D and 3D name the same layouts NCL, NLC, NCDHW, NDHWC)."""
    if state.axis not in (1, -1):
        raise ValueError(f"to_paddle: channels are on axis 1 or -1, got {state.axis}")
    named = {"weight": state.weight, "bias": state.bias, "_mean": state.running_mean, "_variance": state.running_var}
    arrays = {name: array.copy() for name, array in named.items() if array is not None}
    settings = {
        "num_features": state.num_features,
        "momentum": _decay("to_paddle", state),
        "epsilon": state.eps,
        "data_format": "NCHW" if state.axis == 1 else "NHWC",
    }
    settings |= {f"{name}_attr": False for name in ("weight", "bias") if name not in arrays}
    return {prefix + name: array for name, array in arrays.items()}, settings


# ----------------------------------------------------------------------------------------------------------------- helpers


def _vector(name: str, value: Any, size: int | None = None) -> Array:
    """A copy of `value`, checked to be a floating (C,)."""
    array: Array = np.asarray(value).copy()
    if array.dtype.kind not in "fV" or array.dtype.hasobject or array.dtype.names is not None:
        raise TypeError(f"{name}: expected a floating array, got {array.dtype}")
    if array.ndim != 1 or (size is not None and array.size != size):
        raise ValueError(f"{name}: expected shape {'(C,)' if size is None else (size,)}, got {array.shape}")
    return array


def _named(caller: str, arrays: Mapping[str, Any], prefix: str, name: str) -> Any:
    try:
        return arrays[prefix + name]
    except KeyError:
        raise ValueError(f"{caller}: {prefix + name!r} is missing; there are {', '.join(map(str, arrays))}") from None


def _known(caller: str, settings: Settings | None, names: Sequence[str]) -> Settings:
    """The settings, none if None; ValueError for a name that is not among `names`."""
    unknown = [name for name in settings or {} if name not in names]
    if unknown:
        raise ValueError(f"{caller}: unknown settings {', '.join(map(repr, unknown))}; known are {', '.join(names)}")
    return settings or {}


def _flag(caller: str, given: Settings, name: str, default: bool) -> bool:
    """A setting that is true or false, not a text: bool("False") is True."""
    value = given.get(name, default)
    if value not in (True, False):
        raise ValueError(f"{caller}: {name} must be True or False, got {value!r}")
    return bool(value)


class _Complement(float):
    """1 − `of`, rounded to a float, which remembers `of`: rounded once more, 1 − (1 − p) need not be p."""

    of: float


def _complement(fraction: Any) -> float:
    """1 − fraction; of a complement exactly what it is the complement of.

    As decimals, so that 0.9 and 0.1 are each other's complement even when a file or a framework made plain floats of them.
    """
    if isinstance(fraction, _Complement):
        return fraction.of
    of = float(fraction)
    if not 0.0 <= of <= 1.0:
        raise ValueError(f"momentum: expected a number in [0, 1], got {fraction!r}")
    result = _Complement(1 - Decimal(repr(of)))
    result.of = of
    return result


def _decay(caller: str, state: BatchNormState) -> float:
    """The weight of the old value, which the other frameworks call momentum."""
    if state.momentum is None:
        raise ValueError(
            f"{caller}: momentum=None, the cumulative average, has no counterpart there; set a number first"
        )
    return _complement(state.momentum)


def _gamma(state: BatchNormState) -> Array:
    return np.ones_like(state.running_mean) if state.weight is None else state.weight.copy()


def _beta(state: BatchNormState) -> Array:
    return np.zeros_like(state.running_mean) if state.bias is None else state.bias.copy()


def _divided(blob: Array, factor: float) -> Array:
    """blob/factor in float64, rounded once; all 0 where the factor is 0, as Caffe has it."""
    flat = blob.reshape(-1)
    return np.zeros_like(flat) if factor == 0.0 else (flat.astype(np.float64) / factor).astype(flat.dtype)


def _require_axis_1(caller: str, state: BatchNormState) -> None:
    if state.axis != 1:
        raise ValueError(
            f"{caller}: channels are on axis 1 there, the state has axis {state.axis}; transpose the data, and set state.axis = 1"
        )
