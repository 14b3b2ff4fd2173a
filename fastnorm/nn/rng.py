"""Where randomness comes from: one generator for the initial weights and the dropout masks, seeded by `manual_seed`.

Every layer that draws also takes `rng=`, a generator or a seed of its own. The state of the shared generator is a plain
dictionary of numbers and strings, so that a checkpoint can hold it without pickle.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["get_rng_state", "manual_seed", "set_rng_state"]

RngLike = np.random.Generator | int | None

_shared = np.random.Generator(np.random.PCG64())


def manual_seed(seed: int) -> None:
    """Start the shared generator at `seed`: what follows draws the same numbers every time."""
    _shared.bit_generator.state = np.random.PCG64(seed).state


def get_rng_state() -> dict[str, Any]:
    """The state of the shared generator, nothing in it but dictionaries, integers and strings."""
    return copy.deepcopy(dict(_shared.bit_generator.state))


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Go back to a state from `get_rng_state`. Raises ValueError for anything else."""
    try:
        _shared.bit_generator.state = dict(state)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"set_rng_state: expected what get_rng_state returned, got {state!r}") from error


def resolve(rng: RngLike) -> np.random.Generator:
    """The generator meant by an `rng` argument: itself, a new one from a seed, or the shared one for None."""
    if rng is None:
        return _shared
    return rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng)
