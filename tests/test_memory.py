"""Promise 4: the forward allocates y and O(statistics), the backward dx and O(statistics), nothing else of x's size.

Method: tracemalloc sees what NumPy allocates; the peak of the resident set, in a fresh process, sees the rest too. The
inputs are large and have few statistics, so that "O(statistics)" is a small part of x.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support import OPERATIONS, Call, channel_norm, differentiable, dtype_of, every_dtype, paths

import fastnorm as fn

# What does not grow with x: contexts, shapes, small vectors. (The arrays below take 0.6 to 2.5 MB.)
SMALL = 64 << 10


@contextmanager
def traced() -> Iterator[SimpleNamespace]:
    """Bytes allocated inside the block: at the peak, and still held at its end."""
    seen = SimpleNamespace(peak=0, held=0)
    tracemalloc.start()
    start = tracemalloc.get_traced_memory()[0]
    yield seen
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    seen.peak, seen.held = peak - start, held - start


def measure(f: Callable[[], Any]) -> tuple[Any, SimpleNamespace]:
    f()  # whatever the first call allocates for good
    with traced() as seen:
        result = f()
    return result, seen


def extra(call: Call, *, kept: bool = False) -> float:
    """Bytes beside y that an operation may take: statistics, parameters and their gradients, and documented copies, of
    which a context keeps none."""
    x, axis = call.x, call.arguments.get("axis", 1)
    small = SMALL + sum(2 * a.size * 8 for n, a in call.arguments.items() if n in ("weight", "bias", "g"))
    if call.name == "dropout":
        return small + x.size / 8  # a bit for each element
    if call.name == "cross_entropy":
        small += 128 * call.arguments["targets"].size  # a few numbers for each target
    if call.name in ("layer_norm", "rms_norm"):
        small += 24 * (x.size // int(np.prod(call.arguments["normalized_shape"])))
    if call.name in ("group_norm", "instance_norm", "switchable_norm"):
        small += 200 * x.shape[0] * x.shape[axis]
    # Softmax works on rows, weight norm on units that come first, switchable norm on NCHW; what lies otherwise is copied
    # there and back.
    copied = call.name in ("softmax", "log_softmax", "cross_entropy") and call.x.ndim - axis % call.x.ndim > 1
    copied = copied or (call.name == "weight_norm" and call.arguments["dim"] != 0)
    copied = copied or (call.name == "switchable_norm" and axis != 1)
    return small + (2 * x.nbytes if copied and not kept else 0)


def at_most(allowed: float, call: Call, what: str, f: Callable[[], Any], *, held: bool = False) -> Any:
    """The result of f, whose allocations peaked below a bound (held: what it left allocated is below it)."""
    with traced() as seen:
        result = f()
    taken = seen.held if held else seen.peak
    assert taken <= allowed, f"{what}: {taken / call.x.nbytes:.2f} of x, {allowed / call.x.nbytes:.2f} allowed"
    return result


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@paths(differentiable)
def test_allocations(path: str, dtype: str) -> None:
    """Forward y, backward dx; a context keeps references (and the sum of a residual stream); with `out`, nothing."""
    call = OPERATIONS[path].call(np.random.default_rng(0), dtype, large=True)
    x, few = call.x.nbytes, extra(call)
    has_y = call.name != "cross_entropy"
    residual, masked = call.arguments.get("residual") is not None, call.arguments.get("activation") is not None
    summed = residual and call.name != "batch_norm"
    dy, dx = call.upstream(np.random.default_rng(1)), np.empty_like(call.x)
    OPERATIONS[path].call(np.random.default_rng(0), dtype).plain()  # whatever the first call allocates for good

    at_most(has_y * x + few, call, "plain function", call.plain)
    y, ctx = at_most((has_y + summed) * x + few, call, "forward", call.forward)
    # A masked dy is the gradient of batch norm's residual: a result of its own. What is copied may be so in dy as well.
    copied = x if few > extra(call, kept=True) else 0
    allowed = (1 + (residual and masked)) * x + copied + few
    at_most(allowed, call, "backward", lambda: call.backward(dy, ctx))
    if not call.accepts("out"):
        return
    out = np.empty_like(call.x)
    at_most(few, call, "plain function with out", lambda: call.plain(out=out))
    at_most(summed * x + few, call, "forward with out", lambda: call.forward(out=out))
    if not (residual and masked):
        at_most(copied + few, call, "backward with out", lambda: call.backward(dy, ctx, out=dx))


@paths(differentiable)
def test_contexts_keep_references_not_copies(path: str) -> None:
    """What a context holds beside y: statistics, and the sum that the residual stream goes on with."""
    call = OPERATIONS[path].call(np.random.default_rng(0), "float32", large=True)
    outputs = (call.name != "cross_entropy") + (
        call.arguments.get("residual") is not None and call.name != "batch_norm"
    )
    allowed = outputs * call.x.nbytes + extra(call, kept=True)
    _, ctx = at_most(allowed, call, "context", call.forward, held=True)
    x = getattr(ctx, "x", None)
    assert x is None or np.shares_memory(x, call.x)


@pytest.mark.parametrize("axis", [None, 0, 1, (0, 1)])
@every_dtype
def test_moments_allocate_their_results(axis: Any, dtype: str) -> None:
    x = np.ones((1001, 1001), dtype_of(dtype))
    _, seen = measure(lambda: fn.moments(x, axis))
    assert seen.peak <= SMALL


@every_dtype
@pytest.mark.parametrize("name", ["batch_norm", "group_norm", "instance_norm"])
def test_channels_last_views_are_not_copied(name: str, dtype: str) -> None:
    options: dict[str, Any] = {"batch_norm": {"training": True}, "group_norm": {"num_groups": 4}}.get(name, {})
    make = channel_norm(name, **options)
    call = make(np.random.default_rng(0), dtype_of(dtype), (2, 64, 50, 53))
    call = call.replaced(x=np.moveaxis(np.ascontiguousarray(np.moveaxis(call.x, 1, -1)), -1, 1))
    (y, ctx), seen = measure(call.forward)
    assert seen.peak <= call.x.nbytes + extra(call)
    dy = np.ones_like(y)
    _, seen = measure(lambda: call.backward(dy, ctx))
    assert seen.peak <= call.x.nbytes + extra(call)


def test_nothing_leaks(rng: np.random.Generator) -> None:
    """A thousand calls, and a thousand refused ones, leave what they found."""
    calls = [operation.call(rng, "float32") for operation in OPERATIONS.values()]
    frozen = np.zeros((3, 5, 67), np.float32)
    frozen.flags.writeable = False

    def work() -> None:
        for call in calls:
            for _ in range(10):
                call.results(call.upstream(rng))
                for bad in ({"weight": 3}, {"eps": -1}, {"axis": 99}):
                    try:
                        call.replaced(**bad).plain()
                    except (TypeError, ValueError):
                        pass

    work()
    gc.collect()
    with traced() as seen:
        work()
        gc.collect()
    assert seen.held < SMALL


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_resident_set_grows_by_the_output_alone() -> None:
    """What C allocates counts too: with `out=`, 64 MB calls raise the peak of the process by less than 6 MB."""
    script = """
import numpy as np, fastnorm as fn, resource
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
x = np.ones((16, 64, 128, 128), np.float32); x[:, :, ::2] = 2
y, dx = np.ones_like(x), np.ones_like(x)
rows, yr, dr = (a.reshape(-1, 16384) for a in (x, y, dx))
last, yl, dl = (a.reshape(16, 128, 128, 64) for a in (x, y, dx))
weight = np.ones(16384, np.float32)
def grow(name, f):
    before = peak(); f(); print(name, (peak() - before) >> 20)
def pair(name, x, y, dx, *args, **kw):
    def f():
        _, ctx = getattr(fn, name + "_forward")(x, *args, out=y, **kw)
        getattr(fn, name + "_backward")(y, ctx, out=dx)
    grow(name, f)
fn.set_num_threads(2)
pair("batch_norm", x[:1], y[:1], dx[:1], training=True)  # starts the threads
pair("batch_norm", x, y, dx, training=True)
pair("batch_norm", last, yl, dl, training=True, axis=-1)
pair("group_norm", x, y, dx, 32)
pair("group_norm", last, yl, dl, 32, axis=-1)
pair("instance_norm", x, y, dx)
pair("switchable_norm", x, y, dx, np.ones(3, np.float32), np.ones(3, np.float32), training=True)
pair("layer_norm", rows, yr, dr, 16384, weight)
pair("rms_norm", rows, yr, dr, 16384, weight)
pair("softmax", rows, yr, dr)
grow("moments", lambda: fn.moments(x))
"""
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines()[1:]:
        name, grown = line.split()
        assert int(grown) < 6, f"{name}: {grown} MB"
