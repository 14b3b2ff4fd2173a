"""Every function of the package in plain NumPy, to be read beside the formulas.

Method: each norm is one mean and one variance over a set of axes, `xhat = (x - mean) / sqrt(var + eps)`, and an affine
map; the norms differ only in the axes (`_moments`), and share one gradient (`_centred_gradient`). The variance is
two-pass, sum((x - mean)^2) / m, because the textbook's other form, E[x^2] - E[x]^2, cancels.

One page per family: `batch`, `layer`, `group`, `switchable`, `weight`, `likelihood`, `regularization`. `_arithmetic`
holds what they share, `_shapes` and `_checks` what is no mathematics.

Why it exists: it is the textbook page, the twin that the compiled kernels are tested against, and the time that they
are compared with. float32 is computed in float32 and float64 in float64, so float64 input gives reference values;
float16 and bfloat16 are stored in their type and computed in float32. What it does not do is survive squares beyond the
range of the compute type: that is the kernels' promise. It imports NumPy alone, and nothing in the package imports
it.

Notation: x, y arrays; dx, dy gradients of the loss with respect to them; gamma = weight, beta = bias; m = number of
elements that share one mean; rstd = 1 / sqrt(var + eps).
"""

from ._types import Context, InputGrad, LogitsGrad, NormGrads, ResidualNormGrads, SwitchableNormGrads, WeightNormGrads
from .batch import batch_norm, batch_norm_backward, batch_norm_forward, moments
from .group import (
    group_norm,
    group_norm_backward,
    group_norm_forward,
    instance_norm,
    instance_norm_backward,
    instance_norm_forward,
)
from .layer import layer_norm, layer_norm_backward, layer_norm_forward, rms_norm, rms_norm_backward, rms_norm_forward
from .likelihood import (
    cross_entropy,
    cross_entropy_backward,
    cross_entropy_forward,
    log_softmax,
    log_softmax_backward,
    log_softmax_forward,
    softmax,
    softmax_backward,
    softmax_forward,
)
from .regularization import dropout, dropout_backward, dropout_forward
from .switchable import switchable_norm, switchable_norm_backward, switchable_norm_forward
from .weight import weight_norm, weight_norm_backward, weight_norm_forward

__all__ = [
    "Context",
    "InputGrad",
    "LogitsGrad",
    "NormGrads",
    "ResidualNormGrads",
    "SwitchableNormGrads",
    "WeightNormGrads",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_forward",
    "cross_entropy",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "dropout",
    "dropout_backward",
    "dropout_forward",
    "group_norm",
    "group_norm_backward",
    "group_norm_forward",
    "instance_norm",
    "instance_norm_backward",
    "instance_norm_forward",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_forward",
    "log_softmax",
    "log_softmax_backward",
    "log_softmax_forward",
    "moments",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_forward",
    "softmax",
    "softmax_backward",
    "softmax_forward",
    "switchable_norm",
    "switchable_norm_backward",
    "switchable_norm_forward",
    "weight_norm",
    "weight_norm_backward",
    "weight_norm_forward",
]
