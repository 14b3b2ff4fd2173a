"""Optimisers and learning-rate schedules over `fastnorm.nn` parameters: torch's names, formulas and defaults, NumPy's arithmetic.

`optimizer` holds what they share, `rules` the update rules, `clipping` the guards, `schedules` the rates.
"""

from .clipping import clip_grad_norm, clip_grad_value
from .optimizer import Optimizer, decay_groups
from .rules import SGD, Adam, AdamW, RMSprop
from .schedules import (
    ChainedScheduler,
    CosineAnnealingLR,
    ExponentialLR,
    InverseTime,
    LinearWarmup,
    Schedule,
    SequentialLR,
    StepLR,
)

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "ChainedScheduler",
    "CosineAnnealingLR",
    "ExponentialLR",
    "InverseTime",
    "LinearWarmup",
    "Optimizer",
    "RMSprop",
    "Schedule",
    "SequentialLR",
    "StepLR",
    "clip_grad_norm",
    "clip_grad_value",
    "decay_groups",
]
