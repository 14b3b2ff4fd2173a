"""What every optimiser is: groups of parameters with their settings, one state per parameter, and a step without allocation.

The rules are written with NumPy's `out=` on arrays made once: the state of a parameter at its first step, and two
scratch buffers that all parameters share. A step allocates nothing of a parameter's size, unless its gradient is of
another type than state_dtype, so its time is the arithmetic's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnorm.nn.module import Module, Parameter
from fastnorm.nn.normalization import _Norm

__all__ = ["Optimizer", "decay_groups"]

Array = NDArray[Any]
Params = Iterable[Parameter] | Iterable[Mapping[str, Any]]


class Optimizer:
    """Parameters in groups, each group a dictionary of settings; `step()` moves every parameter that has a gradient.

    `params` is an iterable of parameters, or of dictionaries with "params" and the settings that differ from the defaults.
    `state` holds one dictionary per parameter. The state dictionary has torch's form.

    Raises TypeError for what is not a parameter, ValueError for an empty list, a parameter given twice, or an unknown setting.
    """

    slots: tuple[str, ...] = ()  # what it keeps for each parameter

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[Parameter, dict[str, Any]] = {}
        self._scratch: dict[np.dtype[Any], list[Array]] = {}
        self._views: dict[Parameter, list[Array]] = {}
        entries: list[Any] = [params] if isinstance(params, (Parameter, Mapping)) else list(params)
        if not entries:
            raise ValueError(f"{type(self).__name__}: params is empty")
        if not isinstance(entries[0], Mapping):
            entries = [{"params": entries}]
        for entry in entries:
            self.add_param_group(entry)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add parameters, with settings of their own where they differ from the defaults."""
        name = type(self).__name__
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(f"{name}: a group must be a dictionary with 'params', got {group!r}")
        given = group["params"]
        params = [given] if isinstance(given, Parameter) else list(given)
        unknown = [key for key in group if key not in self.defaults and key not in ("params", "initial_lr")]
        if unknown:
            raise ValueError(f"{name}: unknown settings {unknown}; known are {list(self.defaults)}")
        seen = {id(p) for g in self.param_groups for p in g["params"]}
        for parameter in params:
            if not isinstance(parameter, Parameter):
                raise TypeError(f"{name}: expected parameters, got {type(parameter).__name__}")
            if id(parameter) in seen:
                raise ValueError(f"{name}: a parameter of shape {parameter.shape} is given twice")
            seen.add(id(parameter))
        result = {"params": params, **self.defaults, **{k: v for k, v in group.items() if k != "params"}}
        if any("initial_lr" in g for g in self.param_groups):  # a schedule is at work
            result.setdefault("initial_lr", result["lr"])
        self._check(result)
        self.param_groups.append(result)

    def _check(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError for a setting outside its range."""
        for key in ("lr", "initial_lr", "eps", "weight_decay", "l1"):
            if key in group and not 0.0 <= group[key] < float("inf"):
                raise ValueError(f"{type(self).__name__}: {key} must be finite and at least 0, got {group[key]!r}")
        if "momentum" in group and not 0.0 <= group["momentum"] < 1.0:
            raise ValueError(f"{type(self).__name__}: momentum must be in [0, 1), got {group['momentum']!r}")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; with `set_to_none=False` keep the arrays, filled with zeros."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.zero_grad(set_to_none)

    def step(self) -> None:
        """Move every parameter that has a gradient; gradients stay as they are."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state.get(parameter)
                    if state is None:
                        state = self.state[parameter] = {}
                    grad = parameter.grad.astype(state_dtype(parameter), copy=False)
                    self._update(parameter.data, grad, state, group, *self._buffers(parameter))

    def _update(
        self, w: Array, grad: Array, state: dict[str, Any], group: dict[str, Any], work: Array, other: Array
    ) -> None:
        """One step of one parameter: `w` moves in place; `work` and `other` are scratch of its shape, of `grad`'s type."""
        raise NotImplementedError

    def _buffers(self, parameter: Parameter) -> list[Array]:
        """The shared scratch, cut to the parameter's shape."""
        views = self._views.get(parameter)
        if views is None or views[0].shape != parameter.shape:
            kind, size = state_dtype(parameter), parameter.size
            flat = self._scratch.get(kind)
            if flat is None or flat[0].size < size:
                largest = max(p.size for p in self._parameters() if state_dtype(p) == kind)
                flat = self._scratch[kind] = [np.empty(largest, kind) for _ in range(2)]
            views = self._views[parameter] = [array[:size].reshape(parameter.shape) for array in flat]
        return views

    # State

    def state_dict(self) -> dict[str, Any]:
        """{"state": {i: {name: array or number}}, "param_groups": [{…, "params": [i, …]}]}, torch's form; arrays are copies."""
        numbers = {parameter: i for i, parameter in enumerate(self._parameters())}
        state = {numbers[p]: copy.deepcopy(entry) for p, entry in self.state.items() if p in numbers}
        groups = [{**group, "params": [numbers[p] for p in group["params"]]} for group in self.param_groups]
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over settings and state; nothing is changed unless everything fits.

        Raises ValueError where the groups, or the shapes of the state, are not those of this optimiser.
        """
        name = type(self).__name__
        missing = [key for key in ("param_groups", "state") if key not in state_dict]
        if missing:
            raise ValueError(
                f"{name}.load_state_dict: expected the keys param_groups and state, {missing} missing; nothing was changed"
            )
        groups = state_dict["param_groups"]
        ours, theirs = ([len(g["params"]) for g in side] for side in (self.param_groups, groups))
        if ours != theirs:
            raise ValueError(
                f"{name}.load_state_dict: groups of {theirs} parameters, expected {ours}; nothing was changed"
            )
        order = [i for group in groups for i in group["params"]]
        loaded: dict[Parameter, dict[str, Any]] = {}
        for i, parameter in zip(order, self._parameters(), strict=True):
            if i not in state_dict["state"]:
                continue
            entry: dict[str, Any] = {}
            strange = [key for key in state_dict["state"][i] if key not in self.slots]
            if strange or ("step" in self.slots and "step" not in state_dict["state"][i]):
                raise ValueError(
                    f"{name}.load_state_dict: state of parameter {i} holds {list(state_dict['state'][i])}, expected "
                    f"{list(self.slots)}: another optimizer's; nothing was changed"
                )
            for key, value in state_dict["state"][i].items():
                if key == "step":
                    entry[key] = int(value)
                elif value is not None:
                    array = np.asarray(value).astype(state_dtype(parameter))
                    if array.shape != parameter.shape:
                        raise ValueError(
                            f"{name}.load_state_dict: {key} of parameter {i} has shape {array.shape}, expected "
                            f"{parameter.shape}; nothing was changed"
                        )
                    entry[key] = array
            loaded[parameter] = entry
        settings = [{k: v for k, v in group.items() if k in self.defaults or k == "initial_lr"} for group in groups]
        for ours_, group in zip(self.param_groups, settings, strict=True):
            self._check({**ours_, **group})
        for ours_, group in zip(self.param_groups, settings, strict=True):
            ours_.update(group)
        self.state = loaded

    def _parameters(self) -> list[Parameter]:
        return [p for group in self.param_groups for p in group["params"]]

    def __repr__(self) -> str:
        groups = [", ".join(f"{k}={v}" for k, v in g.items() if k != "params") for g in self.param_groups]
        return f"{type(self).__name__}(" + "; ".join(groups) + ")"


def state_dtype(parameter: Parameter | Array) -> np.dtype[Any]:
    """The type of the state and the arithmetic: the parameter's own, float32 for half types, whose squares would vanish."""
    return np.dtype(np.float32) if parameter.dtype.itemsize < 4 else parameter.dtype


def penalised(w: Array, grad: Array, weight_decay: float, l1: float, work: Array, other: Array) -> Array:
    """The gradient of loss + weight_decay/2·‖w‖² + l1·‖w‖₁: in `work`, or `grad` itself where there is no penalty."""
    if weight_decay != 0.0:
        np.multiply(w, weight_decay, out=work, dtype=work.dtype)
        grad = np.add(work, grad, out=work)
    if l1 != 0.0:
        np.sign(w, out=other)
        other *= l1
        grad = np.add(grad, other, out=work)
    return grad


def decay_groups(model: Module, weight_decay: float, **settings: Any) -> list[dict[str, Any]]:
    """Two groups for an optimiser: weights with `weight_decay` (and any other `settings`, such as l1=), the rest with none.

    The rest are gamma and beta of every normalization layer, its logits, the lengths g of weight norm, and every bias: shrinking
    them does not make the function simpler, only smaller.
    """
    free = {id(p) for module in model.modules() if isinstance(module, _Norm) for p in module.parameters()}
    decayed: list[Parameter] = []
    rest: list[Parameter] = []
    for name, parameter in model.named_parameters():
        last = name.rpartition(".")[2]
        (rest if id(parameter) in free or last in ("bias", "weight_g") else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay, **settings},
        {"params": rest, "weight_decay": 0.0, **{name: 0.0 for name in settings if name == "l1"}},
    ]
    return [group for group in groups if group["params"]]
