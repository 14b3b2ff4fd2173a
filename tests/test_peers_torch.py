"""Agreement with torch, where it is installed, on random shapes: values, gradients and running statistics.

Method: shapes drawn at random (one to five axes, prime and power-of-two lengths, length 1 included), parameters given
or not, both in float64, where both packages are far inside the tolerance, and in float32, where torch sets it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastnorm as fn

torch = pytest.importorskip("torch")
F = torch.nn.functional
TRIALS = range(12)
TOLERANCE = {"float32": 3e-5, "float64": 1e-11}
both_floats = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.fixture(autouse=True)
def one_thread_for_torch() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shape(rng: np.random.Generator, low: int, high: int, channels: int | None = None) -> tuple[int, ...]:
    lengths = rng.choice([1, 2, 3, 5, 7, 8, 13, 16, 17, 31], rng.integers(low, high + 1))
    if channels is not None:
        lengths[1] = channels
    while np.prod(lengths) > 100000:
        lengths[int(np.argmax(lengths))] //= 2
    return tuple(int(n) for n in lengths)


def draw(rng: np.random.Generator, size: Any, dtype: str, mean: float = 0.5) -> np.ndarray:
    return (mean + rng.standard_normal(size)).astype(dtype)


def tensor(a: np.ndarray | None, grad: bool = True) -> Any:
    return None if a is None else torch.from_numpy(a.copy()).requires_grad_(grad and a.dtype.kind == "f")


def agree(ours: Any, theirs: Any, dtype: str, what: str) -> None:
    if ours is None:
        return
    theirs = theirs.detach().numpy()
    scale = max(1.0, float(np.abs(theirs).max(initial=0)))
    np.testing.assert_allclose(np.asarray(ours), theirs, TOLERANCE[dtype], TOLERANCE[dtype] * scale, err_msg=what)


def optional(rng: np.random.Generator, size: Any, dtype: str) -> np.ndarray | None:
    return None if rng.random() < 0.2 else draw(rng, size, dtype)


def compare(dtype: str, dy: np.ndarray, y: Any, theirs: Any, grads: dict[str, Any], leaves: dict[str, Any]) -> None:
    agree(y, theirs, dtype, "y")
    theirs.backward(torch.from_numpy(dy))
    for name, gradient in grads.items():
        if gradient is not None:
            agree(gradient, leaves[name].grad, dtype, f"gradient of {name}")


@both_floats
@pytest.mark.parametrize("trial", TRIALS)
@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
def test_batch_and_instance_norm(name: str, trial: int, dtype: str) -> None:
    rng = np.random.default_rng([trial, len(name)])
    x = draw(rng, shape(rng, 2 if name[0] == "b" else 3, 5), dtype, 2)
    own = bool(rng.random() < 0.7)
    per_statistic = x.size // x.shape[1] // (1 if name[0] == "b" else x.shape[0])
    own = own and per_statistic > 1
    c = x.shape[1]
    weight, bias = optional(rng, c, dtype), optional(rng, c, dtype)
    running = [draw(rng, c, dtype), np.abs(draw(rng, c, dtype)) + np.dtype(dtype).type(0.1)]
    if own and rng.random() < 0.3:
        running = [None, None]
    momentum, eps, dy = float(rng.random()), float(10.0 ** rng.uniform(-6, -1)), draw(rng, x.shape, dtype)
    twins = [tensor(r, False) for r in running]
    y, ctx = getattr(fn, f"{name}_forward")(x, *running, weight, bias, own, momentum, eps)
    grads = getattr(fn, f"{name}_backward")(dy, ctx)
    tx, tw, tb = tensor(x), tensor(weight), tensor(bias)
    theirs = getattr(F, name)(tx, *twins, tw, tb, own, momentum, eps)
    leaves = {"x": tx, "weight": tw, "bias": tb}
    compare(dtype, dy, y, theirs, {"x": grads.dx, "weight": grads.dweight, "bias": grads.dbias}, leaves)
    for r, t in zip(running, twins, strict=True):
        if r is not None:
            agree(r, t, dtype, "running statistic")


@both_floats
@pytest.mark.parametrize("trial", TRIALS)
def test_group_norm(trial: int, dtype: str) -> None:
    rng = np.random.default_rng([trial, 3])
    groups = int(rng.choice([1, 2, 3, 4]))
    c = groups * int(rng.choice([1, 2, 3, 5]))
    x = draw(rng, shape(rng, 2, 5, c), dtype, 2)
    c = x.shape[1]
    groups = groups if c % groups == 0 else 1
    if x[0].size // groups == 1:
        x = np.repeat(x[..., None], 3, -1)
        x += draw(rng, x.shape, dtype)
    weight = optional(rng, c, dtype)
    bias = None if weight is None else draw(rng, c, dtype)  # torch's backward wants both or none
    dy = draw(rng, x.shape, dtype)
    y, ctx = fn.group_norm_forward(x, groups, weight, bias, 1e-4)
    grads = fn.group_norm_backward(dy, ctx)
    tx, tw, tb = tensor(x), tensor(weight), tensor(bias)
    leaves = {"x": tx, "weight": tw, "bias": tb}
    theirs = F.group_norm(tx, groups, tw, tb, 1e-4)
    compare(dtype, dy, y, theirs, {"x": grads.dx, "weight": grads.dweight, "bias": grads.dbias}, leaves)


@both_floats
@pytest.mark.parametrize("trial", TRIALS)
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_layer_and_rms_norm(name: str, trial: int, dtype: str) -> None:
    rng = np.random.default_rng([trial, len(name)])
    x = draw(rng, shape(rng, 1, 5), dtype, 2)
    normalized = x.shape[-int(rng.integers(1, x.ndim + 1)) :]
    weight, bias = optional(rng, normalized, dtype), optional(rng, normalized, dtype)
    parameters = (weight, bias, 1e-4) if name[0] == "l" else (weight, None if rng.random() < 0.3 else 1e-4)
    dy = draw(rng, x.shape, dtype)
    y, ctx = getattr(fn, f"{name}_forward")(x, normalized, *parameters)
    grads = getattr(fn, f"{name}_backward")(dy, ctx)
    tx, tw, tb = tensor(x), tensor(weight), tensor(bias)
    theirs = getattr(F, name)(tx, normalized, *(tw, tb, 1e-4) if name[0] == "l" else (tw, parameters[1]))
    leaves = {"x": tx, "weight": tw, "bias": tb}
    compare(dtype, dy, y, theirs, {"x": grads.dx, "weight": grads.dweight, "bias": grads.dbias}, leaves)


@both_floats
@pytest.mark.parametrize("trial", TRIALS)
def test_weight_norm(trial: int, dtype: str) -> None:
    rng = np.random.default_rng([trial, 5])
    v = draw(rng, shape(rng, 1, 4), dtype)
    dim = int(rng.integers(0, v.ndim))
    g = draw(rng, [n if a == dim else 1 for a, n in enumerate(v.shape)], dtype)
    dw = draw(rng, v.shape, dtype)
    w, ctx = fn.weight_norm_forward(v, g, dim)
    grads = fn.weight_norm_backward(dw, ctx)
    tv, tg = tensor(v), tensor(g)
    theirs = torch._weight_norm(tv, tg, dim)
    compare(dtype, dw, w, theirs, {"v": grads.dv, "g": grads.dg}, {"v": tv, "g": tg})


@both_floats
@pytest.mark.parametrize("trial", TRIALS)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(name: str, trial: int, dtype: str) -> None:
    rng = np.random.default_rng([trial, len(name)])
    x = draw(rng, shape(rng, 1, 4), dtype) * np.dtype(dtype).type(3)
    axis = int(rng.integers(-x.ndim, x.ndim))
    dy = draw(rng, x.shape, dtype)
    y, ctx = getattr(fn, f"{name}_forward")(x, axis)
    tx = tensor(x)
    compare(dtype, dy, y, getattr(F, name)(tx, axis), {"x": getattr(fn, f"{name}_backward")(dy, ctx).dx}, {"x": tx})


@both_floats
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("trial", TRIALS)
def test_cross_entropy(trial: int, reduction: str, dtype: str) -> None:
    rng = np.random.default_rng([trial, len(reduction)])
    logits = draw(rng, shape(rng, 2, 4), dtype)
    c = logits.shape[1]
    targets = rng.integers(c, size=logits.shape[:1] + logits.shape[2:])
    ignore = int(rng.choice([-100, 0]))
    targets[rng.random(targets.shape) < 0.2] = ignore
    weight = np.abs(draw(rng, c, dtype)) if rng.random() < 0.5 else None
    smoothing = float(rng.choice([0.0, 0.1]))
    loss, ctx = fn.cross_entropy_forward(logits, targets, weight, ignore, reduction, smoothing)
    tl, tt, tw = tensor(logits), torch.from_numpy(targets), tensor(weight, False)
    theirs = F.cross_entropy(tl, tt, tw, ignore_index=ignore, reduction=reduction, label_smoothing=smoothing)
    dy = np.asarray(draw(rng, np.shape(loss), dtype))
    counted = weight is None or weight[targets[targets != ignore]].sum() > 0
    if reduction == "mean" and not (counted and (targets != ignore).any()):
        assert np.isnan(loss) and torch.isnan(theirs)
        return
    compare(dtype, dy, loss, theirs, {"logits": fn.cross_entropy_backward(dy, ctx).dlogits}, {"logits": tl})


@pytest.mark.parametrize("trial", TRIALS)
def test_half_types_are_nearer_to_float64_than_torch(trial: int) -> None:
    """bfloat16 rows: our error is at most torch's, for they round more often than once."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    rng = np.random.default_rng([trial, 7])
    x = draw(rng, (16, int(rng.integers(2, 300))), "float32", 3).astype(bfloat16)
    exact = fn.layer_norm(x.astype(np.float64), x.shape[1])
    ours = fn.layer_norm(x, x.shape[1]).astype(np.float64)
    t = torch.from_numpy(x.astype(np.float32)).to(torch.bfloat16)
    theirs = F.layer_norm(t, (x.shape[1],)).to(torch.float64).numpy()
    assert np.abs(ours - exact).max() <= np.abs(theirs - exact).max() * 1.01


def test_shared_memory() -> None:
    """A tensor's memory seen through NumPy is normalized in place."""
    t = torch.randn(4, 8, 9, 10).to(memory_format=torch.channels_last)
    expected = F.batch_norm(t, None, None, training=True)
    a = t.numpy()
    assert fn.batch_norm(a, training=True, out=a) is a
    assert torch.allclose(t, expected, atol=1e-5)
