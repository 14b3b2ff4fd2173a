"""The functions: each computes one formula forward, and each `f` has `f_forward` (keeps a context) and `f_backward`."""

from fastnorm.functional import batch, group, layer, likelihood, regularization, switchable, weight
from fastnorm.functional.batch import *  # noqa: F403
from fastnorm.functional.group import *  # noqa: F403
from fastnorm.functional.layer import *  # noqa: F403
from fastnorm.functional.likelihood import *  # noqa: F403
from fastnorm.functional.regularization import *  # noqa: F403
from fastnorm.functional.switchable import *  # noqa: F403
from fastnorm.functional.weight import *  # noqa: F403

__all__ = [
    *batch.__all__,
    *group.__all__,
    *layer.__all__,
    *likelihood.__all__,
    *regularization.__all__,
    *switchable.__all__,
    *weight.__all__,
]
