"""The functions: each computes one formula forward, and each `f` has `f_forward` (keeps a context) and `f_backward`."""

from fastnorm.functional.batch import batch_norm, batch_norm_backward, batch_norm_forward, moments

__all__ = [
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_forward",
    "moments",
]
