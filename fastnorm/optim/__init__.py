"""Optimisers and learning-rate schedules over `fastnorm.nn` parameters: torch's names, formulas and defaults, NumPy's arithmetic.

`optimizer` holds what they share, `rules` the update rules.
"""

from .optimizer import Optimizer, decay_groups
from .rules import SGD, Adam, AdamW, RMSprop

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "RMSprop", "decay_groups"]
