"""Promise 5: nothing breaks it. Every situation of the contract's table of edges, for every operation that it fits.

Wrong arguments are refused before anything is written, by an error that names the argument; empty, constant and
read-only arrays work. What threads, forks and interrupts leave is in test_processes.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support import (
    CHANNEL_NORMS,
    OPERATIONS,
    RUNNING,
    Call,
    compute_type,
    differentiable,
    draw,
    dtype_of,
    every_dtype,
    paths,
    same_bits,
)

import fastnorm as fn

# The arguments that are arrays like x, and those that are vectors of parameters.
LIKE_X = ("x", "v", "logits", "residual")
VECTORS = ("weight", "bias", "running_mean", "running_var", "mean_logits", "var_logits", "g")
NORMS = (*CHANNEL_NORMS, "layer_norm", "rms_norm")


def refused(call: Call, error: Any, name: str, run: Callable[[Call], Any] = Call.plain) -> None:
    """The call raises, names the argument, and leaves every array as it was."""
    before = {n: a.tobytes() for n, a in call.arguments.items() if isinstance(a, np.ndarray)}
    with pytest.raises(error, match=rf"\b{name}\b") as caught:
        run(call)
    message = str(caught.value)
    assert len(message) > len(name) + 10, f"says too little: {message}"
    for n, a in call.arguments.items():
        if isinstance(a, np.ndarray) and a.dtype != object:
            assert a.tobytes() == before[n], f"{n} was written to before the error about {name}"


def both_forms(call: Call) -> Iterator[Callable[[Call], Any]]:
    """The plain function, and the one that keeps a context."""
    yield Call.plain
    if call.differentiable:
        yield Call.forward


# ------------------------------------------------------------------------------------------------ wrong kinds of arrays


def strangers(a: np.ndarray) -> dict[str, Any]:
    """Things that are not the array that was asked for, whatever it was."""
    return {
        "list": a.tolist(),
        "number": 3.0,
        "string": "abc",
        "int64": a.astype(np.int64),
        "bool": a.astype(bool),
        "complex64": a.astype(np.complex64),
        "longdouble": a.astype(np.longdouble),
        "object": a.astype(object),
        "masked": np.ma.masked_array(a, mask=np.zeros(a.shape, bool)),
        "structured": np.zeros(a.shape, [("a", a.dtype)]),
        "datetime": np.zeros(a.shape, "M8[s]"),
        "byte-swapped": a.astype(a.dtype.newbyteorder()),
    }


@paths()
def test_strange_arrays(path: str, rng: np.random.Generator) -> None:
    """Lists, integers, objects, masks, structures and foreign byte orders: TypeError for each argument, by name."""
    call = OPERATIONS[path].call(rng, "float32")
    for name in (n for n in (*LIKE_X, *VECTORS) if call.arguments.get(n) is not None):
        for kind, stranger in strangers(call.arguments[name]).items():
            for form in both_forms(call):
                bad = call.fresh()
                bad.arguments[name] = stranger
                try:
                    refused(bad, TypeError, name, form)
                except BaseException as error:
                    error.add_note(f"{name} as {kind}")
                    raise


@paths()
def test_none_for_x(path: str, rng: np.random.Generator) -> None:
    call = OPERATIONS[path].call(rng, "float32")
    bad = call.fresh()
    bad.arguments[call.first] = None
    for form in both_forms(call):
        refused(bad, TypeError, call.first, form)


@pytest.mark.parametrize(
    ("data", "other"),
    [
        ("float32", "float64"),
        ("float64", "float32"),
        ("float16", "float64"),
        ("float16", "bfloat16"),
        ("bfloat16", "float16"),
    ],
)
@paths()
def test_types_that_do_not_go_together(path: str, data: str, other: str, rng: np.random.Generator) -> None:
    """Parameters and statistics are never cast down, nor are half types mixed."""
    call = OPERATIONS[path].call(rng, data)
    for name in (n for n in (*LIKE_X[3:], *VECTORS) if call.arguments.get(n) is not None):
        for form in both_forms(call):
            bad = call.fresh()
            bad.arguments[name] = bad.arguments[name].astype(dtype_of(other))
            refused(bad, TypeError, name, form)


@paths(lambda call: call.differentiable and call.name != "cross_entropy")
def test_strange_gradients(path: str, rng: np.random.Generator) -> None:
    """(Cross-entropy's dy may be any real number.)"""
    call = OPERATIONS[path].call(rng, "float32")
    dy, (_, ctx) = call.upstream(rng), call.forward()
    name = "dw" if call.name == "weight_norm" else "dy"
    for kind, stranger in strangers(dy).items():
        with pytest.raises(TypeError, match=rf"\b{name}\b"):
            call.backward(stranger, ctx)
            pytest.fail(f"{name} as {kind} was accepted")
    with pytest.raises(TypeError, match=rf"\b{name}\b"):
        call.backward(dy.astype(np.float64), ctx)
    for shape in ((*dy.shape[:-1], dy.shape[-1] + 1), (dy.size,), (1, *dy.shape)):
        with pytest.raises(ValueError, match=rf"\b{name}\b"):
            call.backward(np.resize(dy, shape), ctx)
    for other in (None, 3, call.x, object()):
        with pytest.raises(TypeError, match=r"\bctx\b"):
            call.backward(dy, other)


def test_contexts_of_other_functions(rng: np.random.Generator) -> None:
    """Each backward takes the context of its own forward alone."""
    x = draw(rng, (3, 6, 5), np.float32)
    contexts = {
        name: call.forward()[1]
        for name, call in (
            ("batch_norm", Call("batch_norm", {"x": x, "training": True})),
            ("group_norm", Call("group_norm", {"x": x, "num_groups": 2})),
            ("instance_norm", Call("instance_norm", {"x": x})),
            ("layer_norm", Call("layer_norm", {"x": x, "normalized_shape": 5})),
            ("rms_norm", Call("rms_norm", {"x": x, "normalized_shape": 5})),
            ("softmax", Call("softmax", {"x": x})),
            ("log_softmax", Call("log_softmax", {"x": x})),
            ("dropout", Call("dropout", {"x": x})),
        )
    }
    for name in contexts:
        for other, ctx in contexts.items():
            if other != name:
                with pytest.raises(TypeError, match="ctx"):
                    getattr(fn, f"{name}_backward")(x, ctx)


# ---------------------------------------------------------------------------------------------- wrong shapes and numbers


@paths()
def test_wrong_shapes_of_parameters(path: str, rng: np.random.Generator) -> None:
    call = OPERATIONS[path].call(rng, "float32")
    for name in (n for n in VECTORS if call.arguments.get(n) is not None):
        good = call.arguments[name]
        if call.name == "weight_norm" and good.ndim == 1:
            continue
        for shape in ((good.size + 1,), (good.size - 1,), (1, 1, 1, 1, good.size), (), (0,)):
            for form in both_forms(call):
                bad = call.fresh()
                bad.arguments[name] = np.ones(shape, good.dtype)
                refused(bad, ValueError, name, form)


@paths(lambda call: True, "eps")
def test_eps(path: str, rng: np.random.Generator) -> None:
    call = OPERATIONS[path].call(rng, "float32")
    for form in both_forms(call):
        for bad in (-1e-5, -1, np.nan, np.inf, -np.inf):
            refused(call.fresh(eps=bad), ValueError, "eps", form)
        for strange in ("1e-5", 1j, [1e-5], *(() if call.name == "rms_norm" else (None,))):
            refused(call.fresh(eps=strange), TypeError, "eps", form)
    for good in (0, 0.0, 1, np.float32(1e-3), np.float64(1e-3), 1e30):
        assert np.isfinite(call.fresh(eps=good).plain().astype(np.float64)).all()


@paths(lambda call: True, "momentum")
def test_momentum(path: str, rng: np.random.Generator) -> None:
    call = OPERATIONS[path].call(rng, "float32")
    for form in both_forms(call):
        for bad in (-0.1, 1.1, np.nan, np.inf):
            refused(call.fresh(momentum=bad), ValueError, "momentum", form)
        for strange in ("0.1", 1j, [0.1]):
            refused(call.fresh(momentum=strange), TypeError, "momentum", form)
        refused(call.fresh(momentum=None), (ValueError, TypeError), "momentum", form)


@paths(lambda call: "axis" in call.arguments or call.accepts("axis"))
def test_axis(path: str, rng: np.random.Generator) -> None:
    call = OPERATIONS[path].call(rng, "float32")
    n = call.x.ndim
    for form in both_forms(call):
        for bad in (n, -n - 1, 2**40, -(2**70)):
            refused(call.fresh(axis=bad), ValueError, "axis", form)
        for strange in (1.5, "1", *(() if call.name == "moments" else (None, (1,)))):
            refused(call.fresh(axis=strange), TypeError, "axis", form)
    if call.name in CHANNEL_NORMS[1:]:
        for bad in (0, -n):
            refused(call.fresh(axis=bad), ValueError, "axis")


@paths(lambda call: call.name in CHANNEL_NORMS)
def test_too_few_axes(path: str, rng: np.random.Generator) -> None:
    call = OPERATIONS[path].call(rng, "float32")
    for x in (call.x.ravel()[:3].copy(), call.x.ravel()[:1].reshape(())):
        refused(call.fresh(x=x), ValueError, "x")


@paths(lambda call: True, "activation")
def test_activation(path: str, rng: np.random.Generator) -> None:
    call = OPERATIONS[path].call(rng, "float32")
    for bad in ("gelu", "ReLU", "", b"relu", 1, np.maximum):
        refused(call.fresh(activation=bad), (ValueError, TypeError), "activation")


@paths(lambda call: call.name == "group_norm")
def test_groups(path: str, rng: np.random.Generator) -> None:
    call = OPERATIONS[path].call(rng, "float32")
    c = call.x.shape[call.arguments.get("axis", 1)]
    for bad in (0, -1, c + 1, 2 * c, next(n for n in range(2, 99) if c % n)):
        refused(call.fresh(num_groups=bad), ValueError, "num_groups")
    for strange in (2.0, "2", None, (2,)):
        refused(call.fresh(num_groups=strange), TypeError, "num_groups")


@paths(lambda call: call.name in ("layer_norm", "rms_norm"))
def test_normalized_shape(path: str, rng: np.random.Generator) -> None:
    call = OPERATIONS[path].call(rng, "float32")
    n = call.x.shape[-1]
    for bad in ((), n + 1, (n, n), (1, *call.x.shape), -1, (n - 1,)):
        refused(call.fresh(normalized_shape=bad), ValueError, "normalized_shape")
    for strange in (1.0 * n, "5", None, (1.0 * n,)):
        refused(call.fresh(normalized_shape=strange), TypeError, "normalized_shape")


@paths(lambda call: call.arguments.get("residual") is not None)
def test_residual(path: str, rng: np.random.Generator) -> None:
    call = OPERATIONS[path].call(rng, "float32")
    x = call.x
    for shape in ((*x.shape[:-1], x.shape[-1] + 1), x.shape[1:], (1,) + x.shape):
        refused(call.fresh(residual=np.zeros(shape, x.dtype)), ValueError, "residual")


@paths(lambda call: all(call.accepts(name) for name in RUNNING))
def test_running_statistics_come_in_pairs(path: str, rng: np.random.Generator) -> None:
    call = OPERATIONS[path].call(rng, "float32")
    c = call.x.shape[call.arguments.get("axis", 1)]
    for name, other in (RUNNING, RUNNING[::-1]):
        refused(call.fresh(**{name: np.ones(c, np.float32), other: None}), ValueError, other)
    missing = {"use_input_stats": False} if call.name == "instance_norm" else {"training": False}
    refused(call.fresh(running_mean=None, running_var=None, **missing), ValueError, "running_mean")


@every_dtype
def test_one_value_per_statistic(dtype: str) -> None:
    """Training on one value per channel has no variance: ValueError naming the shape, running statistics untouched."""
    wide = compute_type(dtype_of(dtype))
    for name, options, shapes in (
        ("batch_norm", {"training": True}, ((1, 3), (1, 3, 1), (1, 3, 1, 1))),
        ("instance_norm", {}, ((1, 3), (4, 3), (4, 3, 1), (2, 3, 1, 1))),
        ("switchable_norm", {"training": True}, ((1, 3), (1, 3, 1))),
    ):
        for shape in shapes:
            logits = {f"{k}_logits": np.zeros(3, wide) for k in ("mean", "var")} if name[0] == "s" else {}
            running = {"running_mean": np.full(3, 2, wide), "running_var": np.full(3, 5, wide)}
            call = Call(name, {"x": np.ones(shape, dtype_of(dtype)), **logits, **running, **options})
            with pytest.raises(ValueError, match=r"x\b.*\(" + ", ".join(map(str, shape))):
                call.plain()
            refused(call, ValueError, "x")
            evaluation = {"use_input_stats": False} if name == "instance_norm" else {"training": False}
            assert call.replaced(**evaluation).plain().shape == shape


# ------------------------------------------------------------------------------------------------------- out and overlap


@paths(lambda call: True, "out")
def test_out_that_does_not_fit(path: str, rng: np.random.Generator) -> None:
    call = OPERATIONS[path].call(rng, "float32")
    x = call.x
    frozen = np.zeros_like(x)
    frozen.flags.writeable = False
    for form in (Call.plain, Call.forward):
        for error, out in (
            (ValueError, np.zeros((*x.shape, 1), x.dtype)),
            (ValueError, np.zeros(x.size, x.dtype) if x.ndim > 1 else np.zeros((x.size, 1), x.dtype)),
            (ValueError, frozen),
            (ValueError, np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)[..., ::2]),
            (TypeError, np.zeros(x.shape, np.float64)),
            (TypeError, np.zeros(x.shape, np.float16)),
            (TypeError, np.zeros(x.shape, x.dtype.newbyteorder())),
            (TypeError, x.tolist()),
            (TypeError, np.ma.masked_array(np.zeros(x.shape, x.dtype))),
        ):
            refused(call, error, "out", lambda c, out=out, form=form: form(c, out=out))
            if isinstance(out, np.ndarray):
                assert not np.asarray(out).any(), "out was written to"


@paths(lambda call: True, "out")
def test_misaligned_out(path: str, rng: np.random.Generator) -> None:
    """Refused for what it is, as its strides are x's, or filled by way of a copy."""
    call = OPERATIONS[path].call(rng, "float32")
    expected = call.plain()
    memory = np.zeros(call.x.nbytes + 1, np.uint8)
    out = memory[1:].view(call.x.dtype).reshape(call.x.shape)
    try:
        call.plain(out=out)
    except ValueError as error:
        assert "out: expected an aligned array" in str(error)
        assert not memory.any()
    else:
        same_bits(out, expected)


@paths(lambda call: True, "out")
def test_out_that_overlaps(path: str, rng: np.random.Generator) -> None:
    """In part with x or the residual, or at all with what is still needed: refused. Without overlap in bytes: allowed."""
    call = OPERATIONS[path].call(rng, "float32")
    x = call.x
    for name in (call.first, *(["residual"] if call.arguments.get("residual") is not None else [])):
        memory = np.zeros(x.size + 8, x.dtype)
        mine = call.fresh()
        mine.arguments[name] = memory[: x.size].reshape(x.shape)
        mine.arguments[name][...] = call.arguments[name]
        for start in (1, 8):
            out = memory[start : start + x.size].reshape(x.shape)
            for form in (Call.plain, Call.forward):
                refused(mine, ValueError, "out", lambda c, out=out, form=form: form(c, out=out))
        memory = np.zeros(2 * x.size, x.dtype)
        mine.arguments[name] = memory[: x.size].reshape(x.shape)
        mine.arguments[name][...] = call.arguments[name]
        out = memory[x.size :].reshape(x.shape)
        same_bits(mine.fresh(**{name: mine.arguments[name]}).plain(), call.fresh().plain())
        mine.forward(out=out)
    if call.name in NORMS and "residual" not in call.arguments:
        mine = call.fresh()
        refused(mine, ValueError, "out", lambda c: c.forward(out=c.x))
        refused(mine, ValueError, "out", lambda c: c.forward(out=c.x[...]))


@paths(lambda call: call.name in NORMS)
def test_out_that_overlaps_a_parameter(path: str, rng: np.random.Generator) -> None:
    call = OPERATIONS[path].call(rng, "float32")
    x = call.x
    for name in (n for n in VECTORS if call.arguments.get(n) is not None):
        good = call.arguments[name]
        if good.size > x.size:
            continue
        out = np.zeros_like(x)
        mine = call.fresh()
        mine.arguments[name] = np.ravel(out)[-good.size :].reshape(good.shape)
        assert np.shares_memory(out, mine.arguments[name])
        mine.arguments[name][...] = good
        for form in (Call.plain, Call.forward):
            refused(mine, ValueError, "out", lambda c, out=out, form=form: form(c, out=out))


@paths(differentiable)
def test_gradients_out(path: str, rng: np.random.Generator) -> None:
    """dx's `out` may be dy, but not what the context keeps, nor a part of dy, nor something that does not fit."""
    call = OPERATIONS[path].call(rng, "float32")
    dy, (y, ctx) = call.upstream(rng), call.forward()
    kept = y if call.name in ("softmax", "log_softmax") else call.x
    frozen = np.zeros_like(call.x)
    frozen.flags.writeable = False
    wrong = [
        (ValueError, np.zeros((*call.x.shape, 1), np.float32)),
        (ValueError, frozen),
        (TypeError, np.zeros(call.x.shape, np.float64)),
        (TypeError, call.x.tolist()),
    ]
    if call.name != "dropout":
        total = getattr(ctx, "sum", None)
        wrong.append((ValueError, kept if total is None else total))
    if np.ndim(dy) == call.x.ndim and call.name != "weight_norm":  # which works on a copy
        memory = np.zeros(dy.size + 8, dy.dtype)
        dy, part = memory[:-8].reshape(dy.shape), memory[8:].reshape(dy.shape)
        dy[...] = call.upstream(rng)
        wrong.append((ValueError, part))
    before = np.array(dy)
    for error, out in wrong:
        with pytest.raises(error, match=r"\bout\b"):
            call.backward(dy, ctx, out=out)
        same_bits(dy, before)


# --------------------------------------------------------------------------------------------------- around the arrays


def amid(a: np.ndarray, filling: float, gap: int = 37) -> tuple[np.ndarray, np.ndarray]:
    """A copy of an array with `gap` elements of something else on either side, and all of that memory."""
    memory = np.full(a.size + 2 * gap, filling, a.dtype)
    view = memory[gap : gap + a.size].reshape(a.shape)
    view[...] = a
    return view, memory


@every_dtype
@paths(lambda call: call.differentiable and call.arguments.get("axis", 1) != -1)
def test_what_lies_beside_is_neither_read_nor_written(path: str, dtype: str, rng: np.random.Generator) -> None:
    """Ragged ends of every length: NaN beside the inputs changes nothing, and what is beside the outputs stays."""
    operation = OPERATIONS[path]
    for n in (2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65):
        shape = (*operation.small[:-1], n)
        if path == "group_norm_vectors":
            shape = (*shape[:-1], 5 * n)
        call = operation.make(rng, dtype_of(dtype), shape)
        dy = call.upstream(rng)
        expected = call.results(dy)
        fenced = call.fresh()
        for name, a in call.arguments.items():
            if isinstance(a, np.ndarray) and a.dtype.kind != "i":
                fenced.arguments[name] = amid(a, np.nan)[0]
        more = {}
        if call.accepts("out"):
            more["out"], memory = amid(np.zeros_like(call.x), 7)
        y, ctx = fenced.forward(**more)
        same_bits(y, expected["y"], f"{path} {shape}: y")
        dx, beside = amid(np.zeros_like(call.x), 7)
        g = amid(dy, np.nan)[0] if np.ndim(dy) else dy
        grads = call.backward(g, ctx, out=dx)
        for name, value in grads._asdict().items():
            same_bits(value, expected[name], f"{path} {shape}: {name}")
        for m in (beside, *([memory] if more else [])):
            assert (m[:37] == 7).all() and (m[-37:] == 7).all(), f"{path} {shape} wrote beside its output"


# ---------------------------------------------------------------------------------------------- read-only, empty, constant


@every_dtype
@paths()
def test_read_only_arguments(path: str, dtype: str, rng: np.random.Generator) -> None:
    """x, dy, parameters and targets may be read-only."""
    call = OPERATIONS[path].call(rng, dtype)
    dy = call.upstream(rng)
    expected = call.results(dy)
    frozen = call.fresh()
    for name, a in frozen.arguments.items():
        if isinstance(a, np.ndarray) and not (name in RUNNING and "running_mean" in expected):
            a.flags.writeable = False
    if not call.differentiable:
        same_bits(frozen.plain()[0], expected["mean"])
        return
    y, ctx = frozen.forward()
    same_bits(y, expected["y"])
    if np.ndim(dy):
        dy.flags.writeable = False
    same_bits(call.backward(dy, ctx)[0], next(v for n, v in expected.items() if n in ("dx", "dv", "dlogits")))


@paths(lambda call: call.arguments.get("running_mean") is not None)
def test_read_only_running_statistics(path: str, rng: np.random.Generator) -> None:
    """Refused where they would be written, and then neither of the two has moved; used otherwise."""
    call = OPERATIONS[path].call(rng, "float32")
    updated = call.arguments.get("training", call.arguments.get("use_input_stats", call.name == "instance_norm"))
    for name in RUNNING:
        frozen = call.fresh()
        frozen.arguments[name].flags.writeable = False
        if updated:
            for form in both_forms(call):
                refused(frozen, ValueError, name, form)
        else:
            same_bits(frozen.plain(), call.plain())


@paths(lambda call: call.name in CHANNEL_NORMS and call.arguments.get("running_mean") is not None)
def test_errors_leave_running_statistics_alone(path: str, rng: np.random.Generator) -> None:
    """Whatever is wrong, and however late it is found, the statistics have not moved."""
    call = OPERATIONS[path].call(rng, "float32")
    frozen = np.zeros_like(call.x)
    frozen.flags.writeable = False
    for name, value in (("weight", np.ones(99, np.float32)), ("bias", np.ones(5, np.int32)), ("eps", -1), ("axis", 9)):
        refused(call.fresh(**{name: value}), (ValueError, TypeError), name)
    refused(call.fresh(), ValueError, "out", lambda c: c.plain(out=frozen))
    refused(call.fresh(), ValueError, "out", lambda c: c.plain(out=np.zeros((1, 2), np.float32)))
    shared = call.fresh()
    shared.arguments["running_var"] = shared.arguments["running_mean"]
    if call.arguments.get("training") or call.name == "instance_norm" and "use_input_stats" not in call.arguments:
        refused(shared, ValueError, "running_var")


@every_dtype
@paths(lambda call: call.differentiable and call.name != "cross_entropy")
def test_empty_arrays(path: str, dtype: str, rng: np.random.Generator) -> None:
    """Any axis of length zero: empty output, zero gradients of the parameters, running statistics untouched. (Of no
    costs there is no mean.)"""
    operation = OPERATIONS[path]
    full = operation.call(rng, dtype)
    for gone in range(full.x.ndim):
        shape = tuple(0 if a == gone else n for a, n in enumerate(full.x.shape))
        call = operation.make(rng, dtype_of(dtype), shape)
        if call.name == "group_norm" and call.x.shape[call.arguments.get("axis", 1)] == 0:
            continue  # 0 channels are divisible by any number of groups, but mean nothing
        before = call.fresh()
        y, ctx = call.forward()
        assert y.shape == shape and y.dtype == call.x.dtype
        for name in RUNNING:
            if call.arguments.get(name) is not None:
                same_bits(call.arguments[name], before.arguments[name], name)
        grads = call.backward(np.zeros_like(y), ctx)
        assert grads[0].shape == shape
        for name in grads._fields[1:]:
            value = getattr(grads, name)
            assert value is None or not np.asarray(value, np.float64).any(), f"{name} of shape {shape}"
            if name in ("dweight", "dbias"):
                assert value is None or value.shape == call.arguments[name[1:]].shape
        out = np.zeros_like(call.x)
        if call.accepts("out"):
            assert call.plain(out=out) is out


@every_dtype
@pytest.mark.parametrize("size", [1e-40, 1e-20, 1.0, 1234.0, 1.0000001e10, 1e30, 3e38])
def test_constant_input_gives_exactly_beta(size: float, dtype: str, rng: np.random.Generator) -> None:
    """xhat is exactly zero at any magnitude, length and eps > 0."""
    wide = compute_type(dtype_of(dtype))
    with np.errstate(over="ignore"):
        value = np.asarray(size).astype(dtype_of(dtype))
    if not np.isfinite(value.astype(np.float64)):
        pytest.skip("beyond the type's range")
    for n in (2, 3, 7, 17, 33, 100, 4099):
        weight, bias = draw(rng, (3,), wide), draw(rng, (3,), wide)
        x = np.full((2, 3, n), value)
        long = {"weight": draw(rng, (n,), wide), "bias": draw(rng, (n,), wide)}
        logits = {"mean_logits": draw(rng, (3,), wide), "var_logits": draw(rng, (3,), wide)}
        for eps in (1e-12, 1e-5, 1.0):
            affine = {"weight": weight, "bias": bias, "eps": eps}
            for call in (
                Call("batch_norm", {"x": x, "training": True, **affine}),
                Call("batch_norm", {"x": np.full((n, 3), value), "training": True, **affine}),
                Call("batch_norm", {"x": np.full((2, n, 3), value), "training": True, "axis": -1, **affine}),
                Call("instance_norm", {"x": x, **affine}),
                Call("group_norm", {"x": x, "num_groups": 1, **affine}),
                Call("group_norm", {"x": np.full((2, n, 3), value), "num_groups": 3, "axis": 2, **affine}),
                Call("layer_norm", {"x": x, "normalized_shape": n, **long, "eps": eps}),
                Call("switchable_norm", {"x": x, **logits, "training": True, **affine}),
            ):
                y = call.plain()
                axis = -1 if call.name == "layer_norm" else call.arguments.get("axis", 1)
                beta = call.arguments["bias"].astype(y.dtype)
                beta = beta.reshape([-1 if a == axis % y.ndim else 1 for a in range(y.ndim)])
                what = f"{call.name}, {call.x.shape}, eps {eps}, axis {axis}"
                np.testing.assert_array_equal(y, np.broadcast_to(beta, y.shape), what)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@every_dtype
@paths(lambda call: True, "activation")
def test_relu_lets_nan_through(path: str, dtype: str, bad: float, rng: np.random.Generator) -> None:
    """A NaN is not hidden as 0: what is NaN without the ReLU is NaN with it. (Given statistics keep infinities.)"""
    call = OPERATIONS[path].call(rng, dtype)
    call = call.fresh(activation=None, **({"residual": None} if "residual" in call.arguments else {}))
    call.x[0, 0] = bad
    plain, relu = call.plain(), call.plain(activation="relu") if "activation" not in call.arguments else None
    if relu is None:
        relu = call.replaced(activation="relu").plain()
    given = not call.arguments.get("training", call.arguments.get("use_input_stats", call.name != "batch_norm"))
    assert np.isnan(plain.astype(np.float64)).any() != (given and np.isinf(bad))
    np.testing.assert_array_equal(np.isnan(relu.astype(np.float64)), np.isnan(plain.astype(np.float64)))


@paths(lambda call: call.name in NORMS and call.arguments.get("bias") is not None)
def test_a_bad_gradient_reaches_what_it_must(path: str, rng: np.random.Generator) -> None:
    """One NaN in dy: dbias of its channel or column is NaN, of no other."""
    call = OPERATIONS[path].call(rng, "float32")
    dy, (y, ctx) = call.upstream(rng), call.forward()
    at = tuple(n // 2 for n in dy.shape)
    if call.arguments.get("activation"):
        at = tuple(np.argwhere(y > 0)[7])
    clean = call.backward(dy, ctx)
    dy = dy.copy()
    dy[at] = np.nan
    grads = call.backward(dy, ctx)
    hit = at[-call.arguments["bias"].ndim :] if call.name == "layer_norm" else (at[call.arguments.get("axis", 1)],)
    expected = np.zeros(call.arguments["bias"].shape, bool)
    expected[hit] = True
    for name in ("dweight", "dbias"):
        got, wanted = getattr(grads, name), getattr(clean, name)
        np.testing.assert_array_equal(np.isnan(got), expected, name)
        np.testing.assert_allclose(got[~expected], wanted[~expected], 1e-6, 1e-6, err_msg=name)
    assert np.isnan(grads.dx[at])


@pytest.mark.skipif("FASTNORM_TEST_LARGE" not in os.environ, reason="set FASTNORM_TEST_LARGE to use 16 GB of memory")
@pytest.mark.parametrize("path", ["batch_norm_spans", "batch_norm_columns", "group_norm", "layer_norm", "softmax"])
def test_more_than_2_to_the_31_elements(path: str) -> None:
    """The last rows of more than 2^31 float16 elements are what they are in a small array, forward and backward."""
    with open("/proc/meminfo") as f:
        free = int(next(line for line in f if line.startswith("MemAvailable")).split()[1]) << 10
    if free < 16 << 30:
        pytest.skip("needs 16 GB of free memory")
    rng = np.random.default_rng(5)
    block = draw(rng, (64, 32768), np.float16)
    x = np.empty((1025, 64, 32768), np.float16)
    x[...] = block
    if path == "batch_norm_columns":
        x = x.reshape(-1, 64)
    call = {
        "batch_norm_spans": lambda a: Call("batch_norm", {"x": a, "training": True}),
        "batch_norm_columns": lambda a: Call("batch_norm", {"x": a, "training": True}),
        "group_norm": lambda a: Call("group_norm", {"x": a, "num_groups": 4}),
        "layer_norm": lambda a: Call("layer_norm", {"x": a, "normalized_shape": 32768}),
        "softmax": lambda a: Call("softmax", {"x": a}),
    }[path]
    n = len(x) // 1025
    expected, small = call(x[:n].copy()).forward()
    y, ctx = call(x).forward()
    tolerance = 2.0**-10  # batch statistics of repeated data are the same up to rounding
    for part in (y[:n], y[-n:]):
        np.testing.assert_allclose(part.astype(np.float32), expected.astype(np.float32), tolerance, tolerance)
    del y
    gradient = call(x).backward(x, ctx)[0]
    expected = call(x[:n].copy()).backward(x[:n], small)[0]
    for part in (gradient[:n], gradient[-n:]):
        np.testing.assert_allclose(part.astype(np.float32), expected.astype(np.float32), 4e-3, 4e-3)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 8), (4, 3, 100)])
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_gradient_behind_given_statistics_does_not_depend_on_x(shape: tuple[int, ...], bad: float) -> None:
    """dx = gamma·dy/sqrt(running_var + eps), also where x is no number."""
    x, dy = np.ones(shape, np.float32), np.full(shape, 0.5, np.float32)
    x[1, 1] = bad
    _, ctx = fn.batch_norm_forward(x, np.zeros(3, np.float32), np.ones(3, np.float32))
    dx = fn.batch_norm_backward(dy, ctx).dx
    np.testing.assert_array_equal(dx, np.full(shape, np.float32(0.5 / np.sqrt(1 + 1e-5))))


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_too_small_for_a_half_type_become_zero(storage: str, sign: int) -> None:
    """Results between 0 and the least of the type: zeros, in outputs and in running statistics."""
    dtype = dtype_of(storage)
    mean, var = np.zeros(1, dtype), np.zeros(1, dtype)
    fn.batch_norm(np.array([[1.0], [3.0]]).astype(dtype) * dtype.type(sign), mean, var, training=True, momentum=1e-46)
    assert mean[0] == 0 and var[0] == 0
    x = (np.arange(4).reshape(4, 1) * (1e12 if storage == "bfloat16" else 1e4)).astype(dtype)
    _, ctx = fn.batch_norm_forward(x, training=True)
    tiny = 1e-36 if storage == "bfloat16" else 1e-7
    dy = (np.array([[1], [2], [-1], [3]]) * sign * tiny).astype(dtype)
    assert np.isfinite(fn.batch_norm_backward(dy, ctx).dx.astype(np.float32)).all()


def test_a_small_number_beside_large_ones_in_float16() -> None:
    """The mean of ±60000 and 5e-4 is known as well as float knows it, whatever the layout."""
    x = np.full(64, 5e-4, np.float16)
    x[:16:2], x[1:16:2] = 60000, -60000
    beta = np.full(64, 1e6, np.float32)
    wide = x.astype(np.float64)
    expected = (wide[20] - wide.mean()) / np.sqrt(wide.var() + 1e-5) * 1e6
    for y in (
        fn.layer_norm(x[None], 64, beta)[0],
        fn.group_norm(x[None, None], 1, beta[:1])[0, 0],
        fn.instance_norm(x[None, :, None], weight=beta[:1], axis=-1)[0, :, 0],
    ):
        assert abs(float(y[20]) - expected) <= np.spacing(np.float16(expected))
