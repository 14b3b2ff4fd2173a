"""What every layer is: a forward, a backward, and the parameters and buffers between them.

A layer keeps what its backward needs in one slot: `forward` fills it, `backward` takes it out. So a backward without a
forward, or a second one, is an error and never a wrong gradient. Parameters, buffers and child layers are found by looking
at the attributes of the object, in the order in which they were assigned; names and order are those of `torch.nn`, so a
state dictionary goes from one to the other unchanged.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["Identity", "LoadResult", "Module", "Parameter", "Sequential", "no_grad"]

Array = NDArray[Any]

_mode = threading.local()


@contextmanager
def no_grad() -> Iterator[None]:
    """Forwards inside keep nothing for backward, so each activation is released as soon as the next layer has read it.

    Evaluation needs it only to save memory: results are the same bits. Per thread; may be nested.
    """
    before = getattr(_mode, "off", False)
    _mode.off = True
    try:
        yield
    finally:
        _mode.off = before


class Parameter:
    """An array that is learned, `data`, and the gradient of the loss with respect to it, `grad` (None until a backward).

    Raises TypeError when `data` is not of a floating type.
    """

    __slots__ = ("data", "grad")

    def __init__(self, data: Any, grad: Array | None = None) -> None:
        self.data: Array = np.asarray(data)
        if self.data.dtype.kind not in "fV" or self.data.dtype.hasobject or self.data.dtype.names is not None:
            raise TypeError(f"Parameter: data must be of a floating type, got {self.data.dtype}")
        self.grad = grad

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of `data`."""
        return self.data.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of `data`."""
        return self.data.dtype

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.data.size

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.data.ndim

    def accumulate(self, grad: Array | None) -> None:
        """grad ← grad + `grad`. The first one is kept as it is, without a copy: hand over an array of your own.

        None changes nothing. Raises ValueError when the shape is not that of `data`.
        """
        if grad is None:
            return
        if grad.shape != self.data.shape:
            raise ValueError(f"grad has shape {grad.shape}, the parameter {self.data.shape}")
        if self.grad is None:
            self.grad = grad
        else:
            np.add(self.grad, grad, out=self.grad)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradient; with `set_to_none=False` keep its array, filled with zeros."""
        if set_to_none or self.grad is None:
            self.grad = None
        else:
            self.grad.fill(0)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        return np.array(self.data, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        return f"Parameter(shape={self.data.shape}, dtype={self.data.dtype})"


class LoadResult(NamedTuple):
    """What `load_state_dict(strict=False)` left out on each side."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """A layer: `y = layer(x)`, then `dx = layer.backward(dy)`, which adds to the `grad` of each of its parameters.

    To write one, assign `Parameter`s and layers to attributes, and define `forward` and `backward`; no call of
    `super().__init__()` is needed. `self.save_for_backward(...)` keeps what backward takes back with
    `self.saved_for_backward()`. An attribute that is None (a layer without bias) is simply absent.
    """

    training: bool = True
    _saved: Any = None
    _buffer_names: tuple[str, ...] = ()
    _pre_forward: tuple[Any, ...] = ()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output for the input, usually one array."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def backward(self, dy: Any) -> Any:
        """The gradient with respect to the input of the last forward, given the one with respect to its output."""
        raise NotImplementedError(f"{type(self).__name__} defines no backward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for hook in self._pre_forward:
            hook.refresh()
        return self.forward(*args, **kwargs)

    # What backward needs

    def save_for_backward(self, saved: Any) -> None:
        """Keep `saved` (anything but None) until `backward` takes it; inside `no_grad` keep nothing."""
        self._saved = None if getattr(_mode, "off", False) else saved

    def saved_for_backward(self) -> Any:
        """What the last forward kept, handed out once. Raises RuntimeError when there is nothing."""
        saved = self._saved
        if saved is None:
            raise RuntimeError(
                f"{type(self).__name__}.backward: nothing to go back through; call the layer once before each backward, "
                "outside no_grad()"
            )
        self._saved = None
        return saved

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_saved"}

    # Modes

    def train(self, mode: bool = True) -> Self:
        """Set training mode here and in every layer inside; returns the layer."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Set evaluation mode: `train(False)`."""
        return self.train(False)

    # What is inside

    def register_buffer(self, name: str, value: Array | None) -> None:
        """Make `value` an attribute that the state dictionary carries although it is not learned; None registers nothing."""
        setattr(self, name, value)
        if value is not None and name not in self._buffer_names:
            self._buffer_names = (*self._buffer_names, name)

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(name, layer) for each layer assigned to an attribute."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def children(self) -> Iterator[Module]:
        """Each layer assigned to an attribute."""
        for _, child in self.named_children():
            yield child

    def named_modules(self, prefix: str = "", _seen: set[int] | None = None) -> Iterator[tuple[str, Module]]:
        """(dotted name, layer) for this layer, named `prefix`, and all inside it, each once."""
        seen = set() if _seen is None else _seen
        if id(self) in seen:
            return
        seen.add(id(self))
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name, seen)

    def modules(self) -> Iterator[Module]:
        """This layer and all inside it, each once."""
        for _, module in self.named_modules():
            yield module

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """(dotted name, parameter) of this layer and all inside it, each parameter once."""
        seen: set[int] = set()
        for path, module in self.named_modules(prefix):
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield f"{path}.{name}" if path else name, value

    def parameters(self) -> Iterator[Parameter]:
        """Each parameter of this layer and all inside it, once."""
        for _, parameter in self.named_parameters():
            yield parameter

    def named_buffers(self, prefix: str = "") -> Iterator[tuple[str, Array]]:
        """(dotted name, array) for each buffer of this layer and all inside it."""
        for path, module in self.named_modules(prefix):
            for name in module._buffer_names:
                yield f"{path}.{name}" if path else name, getattr(module, name)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget every gradient; with `set_to_none=False` keep the arrays, filled with zeros."""
        for parameter in self.parameters():
            parameter.zero_grad(set_to_none)

    def apply(self, function: Callable[[Module], Any]) -> Self:
        """Call `function` on each layer inside, then on this one; returns the layer."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    # State

    def _entries(self, prefix: str = "") -> Iterator[tuple[str, Array]]:
        """(key, the live array) in torch's order: a layer's parameters, its buffers, then its children."""
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield prefix + name, value.data
        for name in self._buffer_names:
            yield prefix + name, getattr(self, name)
        for name, child in self.named_children():
            yield from child._entries(f"{prefix}{name}.")

    def state_dict(self) -> dict[str, Array]:
        """Every parameter and buffer by its dotted name, torch's key names and shapes. The arrays are copies."""
        return {key: value.copy() for key, value in self._entries()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> LoadResult:
        """Copy the arrays of `state_dict` into the parameters and buffers, in place.

        Values are arrays, or whatever `numpy.asarray` reads, such as torch's tensors on the CPU. With `strict=False` keys that
        are missing or not known are skipped and returned. Nothing is changed unless everything fits.

        Raises ValueError for missing or unexpected keys (`strict=True`) and for wrong shapes, TypeError for an array that
        would lose precision.
        """
        entries = dict(self._entries())
        missing = [key for key in entries if key not in state_dict]
        unexpected = [key for key in state_dict if key not in entries]
        shapes, types = [], []
        values: dict[str, Array] = {}
        for key, target in entries.items():
            if key in state_dict:
                value = values[key] = np.asarray(state_dict[key])
                if value.shape != target.shape:
                    shapes.append(f"{key} has shape {value.shape}, expected {target.shape}")
                elif not _fits(value.dtype, target.dtype):
                    types.append(f"{key} is {value.dtype}, expected {target.dtype}")
        problems = shapes + types
        if strict and missing:
            problems.append(f"missing keys: {', '.join(missing)}")
        if strict and unexpected:
            problems.append(f"unexpected keys: {', '.join(map(str, unexpected))}")
        if problems:
            error = TypeError if types and len(types) == len(problems) else ValueError
            raise error(f"load_state_dict into {type(self).__name__}: " + "; ".join(problems) + "; nothing was changed")
        for key, value in values.items():
            entries[key][...] = value
        return LoadResult(missing, unexpected)

    # How it looks

    def extra_repr(self) -> str:
        """The arguments that `repr` shows between the parentheses."""
        return ""

    def __repr__(self) -> str:
        children = [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self.named_children()]
        inside = [self.extra_repr()] if self.extra_repr() else []
        if not children:
            return f"{type(self).__name__}({''.join(inside)})"
        return f"{type(self).__name__}(\n  " + "\n  ".join(inside + children) + "\n)"


def _fits(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    """Whether an array of type `source` may be copied into `target`: integers among themselves, or no loss of precision."""
    if target.kind in "iu":
        return source.kind in "iu"
    return source == target or (source.kind in "fV" and target.kind in "fV" and np.can_cast(source, target, "safe"))


class Identity(Module):
    """y = x."""

    def forward(self, x: Array) -> Array:
        """`x` itself."""
        self.save_for_backward(True)
        return x

    def backward(self, dy: Array) -> Array:
        """`dy` itself."""
        self.saved_for_backward()
        return dy


class Sequential(Module):
    """One layer after another: y = last(…second(first(x))). `Sequential(a, b)` or `Sequential({"name": a, …})`.

    Raises TypeError for what is not a layer, ValueError for a layer given twice (its backward remembers one forward).
    """

    def __init__(self, *layers: Module | Mapping[str, Module]) -> None:
        if len(layers) == 1 and isinstance(layers[0], Mapping):
            named: list[tuple[str, Any]] = list(layers[0].items())
        else:
            named = [(str(i), layer) for i, layer in enumerate(layers)]
        for name, layer in named:
            self._add(name, layer)

    def _add(self, name: str, layer: Any) -> None:
        if not isinstance(layer, Module):
            raise TypeError(f"Sequential: expected layers, got {type(layer).__name__} as {name!r}")
        if any(layer is other for other in self.children()):
            raise ValueError(
                f"Sequential: layer {name!r} ({type(layer).__name__}) is there already; a layer remembers one forward, so "
                "make a second one"
            )
        if not isinstance(name, str) or "." in name or hasattr(Module, name):
            raise ValueError(f"Sequential: {name!r} cannot be the name of a layer")
        setattr(self, name, layer)

    def append(self, layer: Module) -> Sequential:
        """Add `layer` at the end, under the next number."""
        self._add(str(len(self)), layer)
        return self

    def forward(self, x: Array) -> Array:
        """Through every layer in order."""
        for layer in self.children():
            x = layer(x)
        return x

    def backward(self, dy: Array) -> Array:
        """Through every layer in reverse order."""
        for layer in reversed(list(self.children())):
            dy = layer.backward(dy)
        return dy

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def __getitem__(self, index: int) -> Module:
        return list(self.children())[index]
