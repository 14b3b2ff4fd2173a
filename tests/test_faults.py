"""Promise 5: nothing breaks it. Every wrong argument of the contract's table of edges, for every operation that it fits.

Wrong arguments are refused before anything is written, by an error that names the argument. What is unusual and right is in
test_edges.py; what threads, forks and interrupts leave is in test_processes.py.
"""

from __future__ import annotations

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
    for strange in (1.0 * n, "5", None, (1.0 * n,), np.ones(n), np.array(1.0 * n)):
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


# ----------------------------------------------------------------------------------------------------- running statistics


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


def test_statistics_of_no_elements_beyond_counting() -> None:
    """Empty arrays may have 2⁶⁰ statistics."""
    x = np.zeros((1 << 40, 1 << 20, 0), np.float32)
    for call in (
        lambda: fn.instance_norm(x),
        lambda: fn.group_norm(x, 1 << 20),
        lambda: fn.moments(x, 2),
        lambda: fn.batch_norm(x.reshape(0, 1 << 58), training=True),
        lambda: fn.weight_norm(x.reshape(1 << 60, 0), np.broadcast_to(np.float32(1), (1 << 60,))),
    ):
        with pytest.raises(MemoryError, match="statistics"):
            call()
