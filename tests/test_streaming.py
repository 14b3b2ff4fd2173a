"""How outputs are stored, past the cache or in it, wherever they lie: times change, never a bit, nor a byte beside the output.

Method: with the threshold set to one byte small arrays are streamed too, and compared with what is stored plainly; neighbouring
rows, spans and channels share cache lines in every way that the arrays' places allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
import pytest
from support import DTYPES, Array, Call, draw, dtype_of, machines, same_bits

import fastnorm as fn
from fastnorm._kernels import core

ACTIVATED = ("batch_norm", "group_norm", "evaluation")
STREAMED = [
    *(
        (norm, (37, width))
        for norm in ("layer_norm", "rms_norm")
        for width in (64, 100, 128, 256, 300, 496, 500, 768, 1029)
    ),
    *(
        ("batch_norm", shape)
        for shape in [(50, 3), (600, 3), (300, 8), (77, 24), (40, 100), (33, 512), (20, 600), (20, 1024), (20, 1500)]
    ),
    *(
        ("batch_norm", shape)
        for shape in [(3, 5, 16, 16), (2, 7, 10, 13), (5, 4, 28, 28), (2, 3, 56, 60), (4, 9, 7, 7)]
    ),
    *(("group_norm", shape) for shape in [(3, 8, 16, 16), (2, 12, 10, 13), (4, 8, 7, 7), (5, 8, 3)]),
    ("batch_norm", (1, 4, 257, 257)),  # spans of several slots
    ("group_norm", (2, 4, 257, 257)),
    *(("switchable_norm", shape) for shape in [(3, 5, 16, 16), (2, 7, 10, 13)]),
    *(
        ("evaluation", shape)
        for shape in [
            *[(300, 8), (77, 24), (33, 512), (20, 1024), (20, 1500), (2, 7, 10, 13), (5, 4, 28, 28), (4, 9, 7, 7)],
            *[(3, 5, 4, 4), (2, 3, 17), (2, 600, 19)],
        ]
    ),
]


@pytest.fixture
def streamed() -> Iterator[None]:
    """Every output is streamed, and 512 elements are worth a thread."""
    size, grain = core.set_stream_bytes(1), core.set_grain(512)
    yield
    core.set_stream_bytes(size)
    core.set_grain(grain)


def placed(size: int, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int, unit: int = 64) -> tuple[Array, Array]:
    """An array that begins `offset` elements after a `unit` of bytes, full of sevens, and all memory around it."""
    room = np.full(size + 64 + 2 * unit, 7, dtype)
    start = (-room.ctypes.data % unit) // dtype.itemsize + offset
    return room[start : start + size].reshape(shape), room


def arguments_of(norm: str, shape: tuple[int, ...], relu: bool, weight: Array) -> dict[str, Any]:
    activation = {"activation": "relu" if relu else None}
    running = {"running_mean": np.zeros_like(weight), "running_var": np.ones_like(weight)}
    logits = np.array([1.0, 0.5, 0.2], weight.dtype)
    return {"weight": weight} | {
        "layer_norm": {"normalized_shape": shape[1]},
        "rms_norm": {"normalized_shape": shape[1]},
        "batch_norm": {"training": True, **activation},
        "evaluation": {**running, **activation},
        "group_norm": {"num_groups": shape[1] // 2, **activation},
        "switchable_norm": {"mean_logits": logits, "var_logits": -logits, "training": True, **running},
    }[norm]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("norm", "shape", "relu"),
    [(norm, shape, relu) for norm, shape in STREAMED for relu in ([False, True] if norm in ACTIVATED else [False])],
)
def test_streamed_outputs_have_the_same_bits(
    norm: str, shape: tuple[int, ...], dtype: str, relu: bool, rng: np.random.Generator, request: pytest.FixtureRequest
) -> None:
    """Wherever the arrays begin in a cache line, on every machine, among channels or rows that need wider arithmetic."""
    t, size = dtype_of(dtype), int(np.prod(shape))
    x, dy = draw(rng, shape, t), draw(rng, shape, t)
    if dtype in ("float32", "bfloat16"):
        x[3:4] *= t.type(1e30)
        x[:, 2:3] *= t.type(1e-30 if norm != "layer_norm" else 1)
        x[9::8] *= t.type(1e-30)
    arguments = arguments_of(norm, shape, relu, draw(rng, shape[1:2], np.float64 if dtype == "float64" else np.float32))
    name = "batch_norm" if norm == "evaluation" else norm

    def results(offset: int) -> tuple[Array, ...]:
        (y, around_y), (dx, around_dx) = (placed(size, shape, t, offset) for _ in range(2))
        mine, (upstream, around_upstream) = placed(size, shape, t, offset)[0], placed(size, shape, t, offset)
        mine[...], upstream[...] = x, dy
        if offset == 4:  # in place
            dx, around_dx = upstream, around_upstream
        result, ctx = getattr(fn, f"{name}_forward")(mine, **arguments, out=y)
        found = getattr(fn, f"{name}_backward")(upstream, ctx, out=dx)
        assert result is y and found[0] is dx
        for part, room in ((y, around_y), (dx, around_dx)):
            kept = part.copy()
            part[...] = 7
            assert (room == 7).all(), "written beside the output"
            part[...] = kept
        return y, *found

    expected = results(0)
    request.getfixturevalue("streamed")
    for machine in machines():
        for offset in (0, 1, 4, 17):
            for one, other in zip(expected, results(offset), strict=True):
                same_bits(one, other, f"{machine}, offset {offset}")


@pytest.fixture
def l2_bytes() -> Iterator[Callable[[int], int]]:
    """Sets how large a second-level cache the kernels reckon with."""
    size = core.set_l2_bytes(1)
    core.set_l2_bytes(size)
    yield core.set_l2_bytes
    core.set_l2_bytes(size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        *(("batch_norm", shape) for shape in [(40, 100), (33, 512), (20, 1500), (70, 1300), (700, 40)]),
        *(("batch_norm", shape) for shape in [(33, 70, 7, 7), (70, 40, 9, 9), (40, 100, 5), (9, 40, 3, 7)]),
        *(("batch_norm", shape) for shape in [(3, 5, 16, 16), (5, 4, 28, 28), (2, 7, 10, 13)]),
        *(("group_norm", shape) for shape in [(3, 8, 16, 16), (2, 12, 10, 13)]),
        ("group_norm", (1, 2600, 5, 9)),  # channels last, 65 to a group: no whole lines
        *(("evaluation", shape) for shape in [(20, 1500), (33, 70, 7, 7)]),
    ],
)
def test_no_bit_depends_on_the_size_of_the_cache(
    norm: str,
    shape: tuple[int, ...],
    dtype: str,
    l2_bytes: Callable[[int], int],
    rng: np.random.Generator,
    request: pytest.FixtureRequest,
) -> None:
    """How tiles are cut, what is fetched, and whether dx is written while the next sums are formed, is the cache's affair."""
    t = dtype_of(dtype)
    x, dy = draw(rng, shape, t), draw(rng, shape, t)
    weight = draw(rng, shape[1:2], np.float64 if dtype == "float64" else np.float32)
    name, arguments = "batch_norm" if norm == "evaluation" else norm, arguments_of(norm, shape, True, weight)
    if shape[1] == 2600:
        x, dy = (a.reshape(1, 5, 9, 2600).transpose(0, 3, 1, 2) for a in (x, dy))
        arguments["num_groups"] = 40

    def results() -> tuple[Array, ...]:
        y, ctx = getattr(fn, f"{name}_forward")(x, **arguments)
        return (
            y,
            ctx.mean,
            ctx.var,
            *getattr(fn, f"{name}_backward")(dy, ctx),
        )  # the statistics in double: sums' last bits

    expected = results()
    for fixture in (None, "streamed"):
        if fixture:
            request.getfixturevalue(fixture)
        for machine in machines():
            for size in (4096, 65536, 2097152):
                l2_bytes(size)
                for one, other in zip(expected, results(), strict=True):
                    same_bits(one, other, f"{machine}, L2 of {size} bytes, {fixture}")


@contextmanager
def far_from_cache(told: bool) -> Iterator[None]:
    """Every output is streamed, and nothing lies in L2; is the processor one that is `told` what comes next?"""
    size, l2, before = core.set_stream_bytes(1), core.set_l2_bytes(1), core.set_fetches_next(told)
    try:
        yield
    finally:
        core.set_stream_bytes(size)
        core.set_l2_bytes(l2)
        core.set_fetches_next(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        *((norm, (37, width)) for norm in ("layer_norm", "rms_norm") for width in (64, 100, 768, 1029, 4096)),
        *(("batch_norm", shape) for shape in [(300, 8), (33, 512), (5, 4, 28, 28), (3, 5, 61, 60), (4, 9, 7, 7)]),
        *(("group_norm", shape) for shape in [(3, 8, 16, 16), (2, 4, 100, 101)]),
    ],
)
def test_no_bit_depends_on_what_is_fetched(
    norm: str, shape: tuple[int, ...], dtype: str, rng: np.random.Generator
) -> None:
    """On processors that are told what comes next, and on others, where dx is written while the next sums are formed."""
    t = dtype_of(dtype)
    x, dy = draw(rng, shape, t), draw(rng, shape, t)
    weight = draw(rng, shape[1:2], np.float64 if dtype == "float64" else np.float32)
    arguments = arguments_of(norm, shape, norm in ACTIVATED, weight)

    def results() -> tuple[Array, ...]:
        y, ctx = getattr(fn, f"{norm}_forward")(x, **arguments)
        return y, *getattr(fn, f"{norm}_backward")(dy, ctx)

    expected = results()
    for machine in machines():
        for told in (False, True):
            with far_from_cache(told):
                found = results()
            for one, other in zip(expected, found, strict=True):
                same_bits(one, other, f"{machine}, told {told}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [513, 1000, 1090, 2049])
@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_softmax_far_from_cache(op: str, width: int, dtype: str, rng: np.random.Generator) -> None:
    """Wherever a row's output lies beside the next row in a page: exps may go ahead of it."""
    shape, t = (4, width), dtype_of(dtype)
    x, dy = draw(rng, shape, t), draw(rng, shape, t)
    forward, backward = getattr(fn, op), getattr(fn, f"{op}_backward")
    y, ctx = getattr(fn, f"{op}_forward")(x)
    dx = backward(dy, ctx).dx
    for machine in machines():  # not in a product, which would use them all up before the first
        for told, behind in product((False, True), (-64, 0, 4, 16, 64, 256, 320, 2048)):
            source = placed(x.size, shape, t, 0, 4096)[0]
            out, around = placed(x.size, shape, t, (width + behind) % (4096 // t.itemsize), 4096)
            for given, expected in ((x, y), (dy, dx)):
                source[...] = given
                with far_from_cache(told):
                    forward(source, out=out) if given is x else backward(source, ctx, out=out)
                same_bits(out, expected, f"{machine}, told {told}, {behind} elements behind")
                assert (around == 7).sum() == around.size - out.size + (out == 7).sum(), "written beside the output"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 15, 64, 1000, 1041, 16384, 17000, 33001])
def test_dropout_begins_anywhere_in_a_line(
    size: int, dtype: str, rng: np.random.Generator, request: pytest.FixtureRequest
) -> None:
    """Words of 64 bits are made some at a time, and the lines that they decide lie across them; in place, too."""
    t = dtype_of(dtype)
    x, dy = draw(rng, (size,), t), draw(rng, (size,), t)

    def results(offset: int, in_place: bool) -> tuple[Array, Array, Array]:
        (y, around_y), (dx, around_dx) = (placed(size, (size,), t, offset) for _ in range(2))
        y[...], dx[...] = x, dy
        result, ctx = fn.dropout_forward(y if in_place else x, 0.3, seed=5, out=y)
        same_bits(fn.dropout(x, 0.3, seed=5, out=np.empty_like(x)), result, "without a mask")
        assert result is y and fn.dropout_backward(dx if in_place else dy, ctx, out=dx)[0] is dx
        for part, room in ((y, around_y), (dx, around_dx)):
            kept = part.copy()
            part[...] = 7
            assert (room == 7).all(), "written beside the output"
            part[...] = kept
        return y, dx, ctx.mask

    expected = results(0, False)
    request.getfixturevalue("streamed")
    for machine in machines():
        for offset, in_place in product((0, 1, 4, 17), (False, True)):
            for one, other in zip(expected, results(offset, in_place), strict=True):
                same_bits(one, other, f"{machine}, offset {offset}, in place {in_place}")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [16, 48, 64, 112, 240])
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_short_rows_share_cache_lines(
    norm: str, width: int, dtype: str, rng: np.random.Generator, request: pytest.FixtureRequest
) -> None:
    """Whose the two parts of a line are changes no bit: rows of one group or of two, of wider arithmetic, the last."""
    t, shape = dtype_of(dtype), (70, width)
    size = 70 * width
    x, dy = draw(rng, shape, t), draw(rng, shape, t)
    if dtype == "float32":
        x[[20, 63]] *= t.type(1e30)
    arguments = arguments_of(norm, shape, False, draw(rng, (width,), t))

    def results(at_x: int, at_y: int) -> tuple[Array, ...]:
        y, around_y = placed(size, shape, t, at_y)
        dx, around_dx = placed(size, shape, t, at_y)
        mine = placed(size, shape, t, at_x)[0]
        mine[...] = x
        _, ctx = getattr(fn, f"{norm}_forward")(mine, **arguments, out=y)
        found = getattr(fn, f"{norm}_backward")(dy, ctx, out=dx)
        for part, room in ((y, around_y), (dx, around_dx)):
            assert (room == 7).sum() == room.size - size + (part == 7).sum(), "written beside the output"
        return y, *found

    expected = results(0, 0)
    for fixture in (None, "streamed"):
        if fixture:
            request.getfixturevalue(fixture)
        for machine in machines():
            for at in ((0, 4), (4, 4), (9, 1), (4, 0), (3, 7)):
                for one, other in zip(expected, results(*at), strict=True):
                    same_bits(one, other, f"{machine}, x and y at {at}, {fixture}")


# Elements into a cache line at which x, dy and the output begin.
PLACES = ((0, 0, 1), (1, 0, 4), (3, 3, 3), (4, 8, 12), (5, 15, 9), (0, 4, 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [(5, 64), (9, 528), (2, 1024), (7, 1088), (6, 2064), (131, 24), (300, 8), (33, 48), (2, 512), (3, 32, 7, 7)],
)
def test_unaligned_rows_stored_in_place(
    shape: tuple[int, ...], dtype: str, rng: np.random.Generator, l2_bytes: Callable[[int], int]
) -> None:
    """Rows without gaps whose lines are not cache lines: stored apart or in place, plain columns or among ones of wider arithmetic, within
    L2 and beyond it, where AVX2 takes rows as one run and not four together."""
    t, size = dtype_of(dtype), int(np.prod(shape))
    x, dy = draw(rng, shape, t), draw(rng, shape, t)
    weight = draw(rng, shape[1:2], np.float64 if dtype == "float64" else np.float32)
    running = {"running_mean": 0.5 * weight, "running_var": 1 + weight * weight}

    def results(at_x: int, at_dy: int, at_y: int, in_place: bool, training: bool) -> tuple[Array, ...]:
        (mine, around_x), (upstream, around_dy) = placed(size, shape, t, at_x), placed(size, shape, t, at_dy)
        (y, around_y), (dx, around_dx) = placed(size, shape, t, at_y), placed(size, shape, t, at_y)
        mine[...], upstream[...] = x, dy
        if in_place:
            dx, around_dx = upstream, around_dy
        start, again = ({name: value.copy() for name, value in running.items()} for _ in range(2))
        affine = {"weight": weight, "bias": weight[::-1]}
        _, ctx = fn.batch_norm_forward(mine, **again, **affine, training=training, activation="relu", out=y)
        found = fn.batch_norm_backward(upstream, ctx, out=dx)
        if in_place:
            y, around_y = mine, around_x
            fn.batch_norm(mine, **start, **affine, training=training, activation="relu", out=mine)
        for part, room in ((y, around_y), (dx, around_dx)):
            assert (room == 7).sum() == room.size - size + (part == 7).sum(), "written beside the output"
        return y, *found

    for wide in (False, True) if dtype in ("float32", "bfloat16") else (False,):
        if wide:
            x[:, 3:4] *= t.type(1e30)
            x[:, -1:] *= t.type(1e-30)
        for training in (True, False):
            l2_bytes(1 << 20)
            expected = results(0, 0, 0, False, training)
            for machine in machines():  # not in product, which would draw them all first
                for l2, at, in_place in product((1, 1 << 20), PLACES, (False, True)):
                    l2_bytes(l2)
                    where = f"{machine}, places {at}, wide {wide}, in place {in_place}, L2 {l2}, training {training}"
                    for one, other in zip(expected, results(*at, in_place, training), strict=True):
                        same_bits(one, other, where)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 63, 257, 1000, 1024, 2049, 8193, 262200])
@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_softmax(op: str, width: int, dtype: str, rng: np.random.Generator) -> None:
    """Streamed or not, apart or in place, wherever the rows lie, with room for a row of exps or not: the same bits."""
    shape, t = (5 if width < 10000 else 2, width), dtype_of(dtype)
    x, dy = draw(rng, shape, t), draw(rng, shape, t)
    forward, backward = getattr(fn, op), getattr(fn, f"{op}_backward")
    y, ctx = getattr(fn, f"{op}_forward")(x)
    passes = {"y": (forward, x, y), "dx": (lambda dy, out: backward(dy, ctx, out=out).dx, dy, backward(dy, ctx).dx)}
    before, grain = core.set_stream_bytes(1), core.set_grain(512)
    try:
        for machine in machines():
            for at in (0, 1, 4, 15) if width < 10000 else (1,):
                for (field, (call, given, expected)), in_place in product(passes.items(), (False, True)):
                    (source, around_source), (out, around_out) = (placed(x.size, shape, t, at) for _ in range(2))
                    source[...] = given
                    if in_place:
                        out, around_out = source, around_source
                    call(source, out=out)
                    same_bits(out, expected, f"{field}, {machine}, {at} elements into a line, in place {in_place}")
                    assert (around_out == 7).sum() == around_out.size - out.size + (out == 7).sum(), (
                        "written beside the output"
                    )
    finally:
        core.set_stream_bytes(before)
        core.set_grain(grain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [3, 512, 1000, 1024, 2049, 8193])
def test_cross_entropy(width: int, dtype: str, rng: np.random.Generator) -> None:
    """dlogits, streamed or not, wherever rows and targets lie: the same bits, and those of a row alone."""
    t, rows = dtype_of(dtype), 9
    x, upstream = draw(rng, (rows, width), t), rng.standard_normal(rows)
    targets = rng.integers(0, width, rows)
    targets[:4] = 0, width - 1, width // 2, -100
    _, ctx = fn.cross_entropy_forward(x, targets, reduction="none")
    expected = fn.cross_entropy_backward(upstream, ctx).dlogits
    for r in range(rows):
        alone = fn.cross_entropy_forward(x[r : r + 1], targets[r : r + 1], reduction="none")[1]
        same_bits(fn.cross_entropy_backward(upstream[r : r + 1], alone).dlogits[0], expected[r], f"row {r}")
    before, grain = core.set_stream_bytes(1), core.set_grain(512)
    try:
        for machine in machines():
            for at in (0, 1, 4, 15):
                out, around = placed(x.size, x.shape, t, at)
                fn.cross_entropy_backward(upstream, ctx, out=out)
                same_bits(out, expected, f"{machine}, {at} elements into a line")
                assert (around == 7).sum() == around.size - out.size + (out == 7).sum(), "written beside the output"
    finally:
        core.set_stream_bytes(before)
        core.set_grain(grain)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_outputs_have_the_bits_of_their_channels_alone(dtype: str, rng: np.random.Generator) -> None:
    """An output of more than 8 MB is written past the cache; its bits are those of its channels taken alone."""
    itemsize = dtype_of(dtype).itemsize
    shape = (2, 4, (12 << 20) // (8 * itemsize) + 77)
    x, dy = (np.resize(draw(rng, (100003,), dtype_of(dtype)), shape) for _ in range(2))
    call = Call("batch_norm", {"x": x, "training": True})
    every = call.results(dy)
    alone = call.replaced(x=x[:, 3:].copy()).results(dy[:, 3:].copy())
    for field in ("y", "dx"):
        same_bits(every[field][:, 3:], alone[field], field)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("relu", [False, True])
def test_channels_beyond_l2_have_the_bits_of_their_own_alone(relu: bool, dtype: str, rng: np.random.Generator) -> None:
    """Too large for L2 and too small to go past the cache: dx of a channel is written while the next one is summed."""
    t, shape = dtype_of(dtype), (2, 80, 91, 91)
    x, dy = (np.resize(draw(rng, (100003,), t), shape) for _ in range(2))
    x[:, 7] *= t.type(1e30 if dtype in ("float32", "bfloat16") else 1)  # among others that need no wider arithmetic
    weight, bias = (rng.standard_normal(80).astype("f8" if dtype == "float64" else "f4") for _ in range(2))
    arguments = {"x": x, "weight": weight, "bias": bias, "training": True, "activation": "relu" if relu else None}
    y, ctx = fn.batch_norm_forward(**arguments)
    for in_place in (False, True):
        upstream = dy.copy()
        grads = fn.batch_norm_backward(upstream, ctx, out=upstream if in_place else None)
        for c in (0, 6, 7, 8, 79):
            own = slice(c, c + 1)
            alone = arguments | {"x": x[:, own].copy(), "weight": weight[own], "bias": bias[own]}
            y_alone, ctx_alone = fn.batch_norm_forward(**alone)
            same_bits(y[:, own], y_alone, f"y of channel {c}")
            for field, one in fn.batch_norm_backward(dy[:, own].copy(), ctx_alone)._asdict().items():
                every = getattr(grads, field)
                same_bits(
                    every[:, own] if field == "dx" else every[own], one, f"{field}, channel {c}, in place {in_place}"
                )
