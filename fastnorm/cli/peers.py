"""The same rows done by PyTorch, JAX and ONNX Runtime, where they are installed.

`contenders` gives the calls as users write them: `torch.nn.functional` and autograd, `jax.jit`, an ONNX Runtime session
fed NumPy arrays. `best=True` adds what makes their best form: the `out=` variants of PyTorch's operators, ONNX
Runtime with bound, preallocated arrays; to be run under an allocator that keeps its pages (`best_environment`). The
faster one counts. JAX and ONNX Runtime take part forward only: their gradients come inside a compiled training step,
not as a call.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from fastnorm.cli.measure import EPS, Problem, Row

__all__ = ["PEERS", "best_environment", "contenders", "installed", "limit_threads", "versions"]

PEERS = {"torch": "PyTorch", "jax": "JAX", "onnxruntime": "ONNX Runtime"}
Calls = dict[str, Callable[[], Any]]


def installed() -> list[str]:
    return [name for name in PEERS if importlib.util.find_spec(name) is not None]


def versions() -> dict[str, str]:
    found = {}
    for name in installed():
        found[PEERS[name]] = importlib.import_module(name).__version__
    return found


def best_environment() -> dict[str, str]:
    """The environment under which glibc's malloc keeps released pages, so that a peer's fresh outputs cost it
    nothing."""
    return {
        **os.environ,
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "MALLOC_TOP_PAD_": str(256 << 20),
    }


def limit_threads(count: int) -> None:
    """Hold this process, and so every library loaded from now on, to `count` CPUs."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    os.environ["OMP_NUM_THREADS"] = str(count)


def contenders(problem: Problem, names: list[str], threads: int, *, best: bool = False) -> Calls:
    """The row's call for each of `names` that can do it; with `best` a second one, ", out", where there is such a
    form.
    """
    makers = {"torch": _torch, "jax": _jax, "onnxruntime": _onnx}
    found = {}
    for name in names:
        call = makers[name](problem, threads, False)
        if call is not None:
            found[PEERS[name]] = call
        form = makers[name](problem, threads, True) if best and name != "jax" else None
        if form is not None:
            found[f"{PEERS[name]}, out"] = form
    return found


def _torch(problem: Problem, threads: int, best: bool) -> Callable[[], Any] | None:
    import torch
    import torch.nn.functional as F

    row = problem.row
    torch.set_num_threads(threads)

    def tensor(array: Any) -> Any:
        if row.dtype == "bfloat16" and array.dtype.itemsize == 2:
            return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    x, dy = tensor(problem.x), tensor(problem.dy) if problem.dy.ndim else torch.ones((), dtype=torch.float32)
    if row.layout == "nhwc":
        x, dy = x.movedim(-1, 1), dy.movedim(-1, 1)
    w, b, rm, rv = (tensor(a.copy()) for a in (problem.weight, problem.bias, problem.running_mean, problem.running_var))
    if row.dtype in ("float16", "bfloat16") and row.op != "batch_norm":
        w, b = w.to(x.dtype), b.to(x.dtype)  # torch wants parameters in the storage type there
    functions: dict[str, Callable[[Any, Any, Any], Any]] = {
        "batch_norm": lambda x, w, b: F.batch_norm(x, rm, rv, w, b, row.direction != "eval", 0.1, EPS),
        "layer_norm": lambda x, w, b: F.layer_norm(x, row.shape[-1:], w, b, EPS),
        "rms_norm": lambda x, w, b: F.rms_norm(x, row.shape[-1:], w, EPS),
        "group_norm": lambda x, w, b: F.group_norm(x, row.groups, w, b, EPS),
        "instance_norm": lambda x, w, b: F.instance_norm(x, None, None, w, b, True, 0.1, EPS),
        "weight_norm": lambda x, w, b: torch._weight_norm(x, w.reshape(-1, *[1] * (x.ndim - 1)), 0),
        "softmax": lambda x, w, b: torch.softmax(x, -1),
        "log_softmax": lambda x, w, b: torch.log_softmax(x, -1),
        "cross_entropy": lambda x, w, b: F.cross_entropy(x, targets),
        "dropout": lambda x, w, b: F.dropout(x, 0.5, True),
    }
    function = functions.get(row.op)
    if function is None:
        return None
    targets = torch.from_numpy(problem.targets)
    if best:
        with torch.no_grad():
            form = _torch_out(row, x, dy, w, b, rm, rv)
        return None if form is None else torch.no_grad()(form)
    if row.direction != "backward":
        return torch.no_grad()(lambda: function(x, w, b))

    inputs = [x.requires_grad_()]
    if row.op not in ("softmax", "log_softmax", "cross_entropy", "dropout"):
        inputs += [w.requires_grad_()]
        if row.op not in ("rms_norm", "weight_norm"):
            inputs += [b.requires_grad_()]
    output = function(x, w, b)
    gradient = dy.to(output.dtype)
    return lambda: torch.autograd.grad(output, inputs, gradient, retain_graph=True)


def _torch_out(row: Row, x: Any, dy: Any, w: Any, b: Any, rm: Any, rv: Any) -> Callable[[], Any] | None:
    """PyTorch's operators below autograd, writing into preallocated tensors."""
    import torch

    aten = torch.ops.aten
    n, c, space = row.shape[0], row.channels, int(np.prod(row.shape[2:]))
    y = torch.empty_like(x)
    small = [torch.empty(0, dtype=w.dtype), torch.empty(0, dtype=w.dtype)]
    outs = dict(zip(("out0", "out1", "out2"), (y, *small), strict=True))
    training, rows, mask = row.direction != "eval", row.shape[-1:], [True, True, True]
    if row.direction != "backward":
        match row.op:
            case "batch_norm":
                return lambda: torch.native_batch_norm(x, w, b, rm, rv, training, 0.1, EPS, out=(y, *small))
            case "layer_norm":
                return lambda: aten.native_layer_norm.out(x, rows, w, b, EPS, **outs)
            case "group_norm":
                return lambda: aten.native_group_norm.out(x, w, b, n, c, space, row.groups, EPS, **outs)
            case "softmax":
                return lambda: torch.softmax(x, -1, out=y)
            case "log_softmax":
                return lambda: torch.log_softmax(x, -1, out=y)
        return None
    match row.op:
        case "batch_norm":
            _, mean, rstd = torch.native_batch_norm(x, w, b, rm, rv, True, 0.1, EPS)
            backward = aten.native_batch_norm_backward.out
            return lambda: backward(dy, x, w, rm, rv, mean, rstd, True, EPS, mask, **outs)
        case "layer_norm":
            _, mean, rstd = torch.native_layer_norm(x, rows, w, b, EPS)
            return lambda: aten.native_layer_norm_backward.out(dy, x, rows, mean, rstd, w, b, mask, **outs)
        case "group_norm":
            _, mean, rstd = torch.native_group_norm(x, w, b, n, c, space, row.groups, EPS)
            return lambda: aten.native_group_norm_backward.out(
                dy, x, mean, rstd, w, n, c, space, row.groups, mask, **outs
            )
    return None


def _jax(problem: Problem, threads: int, best: bool) -> Callable[[], Any] | None:
    row = problem.row
    if row.direction == "backward" or row.op in ("switchable_norm", "weight_norm", "cross_entropy"):
        return None
    import jax
    import jax.numpy as jnp

    if row.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    x = jnp.asarray(problem.x)
    w, b, rm, rv = (jnp.asarray(a) for a in (problem.weight, problem.bias, problem.running_mean, problem.running_var))
    rank = x.ndim
    channel = (rank - 1) if row.layout == "nhwc" else 1
    per_channel = [1] * rank
    per_channel[channel] = -1

    def normalize(x: Any, axes: tuple[int, ...], w: Any, b: Any) -> Any:
        mean = jnp.mean(x, axes, keepdims=True)
        var = jnp.var(x, axes, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(var + EPS) * w + b

    def function(x: Any, w: Any, b: Any, rm: Any, rv: Any) -> Any:
        match row.op:
            case "batch_norm":
                wc, bc = w.reshape(per_channel), b.reshape(per_channel)
                if row.direction == "eval":
                    return (x - rm.reshape(per_channel)) * (wc * jax.lax.rsqrt(rv.reshape(per_channel) + EPS)) + bc
                return normalize(x, tuple(i for i in range(rank) if i != channel), wc, bc)
            case "layer_norm":
                return normalize(x, (-1,), w, b)
            case "rms_norm":
                return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPS) * w
            case "instance_norm":
                axes = tuple(i for i in range(1, rank) if i != channel)
                return normalize(x, axes, w.reshape(per_channel), b.reshape(per_channel))
            case "group_norm":
                first = jnp.moveaxis(x, channel, 1)
                grouped = first.reshape(x.shape[0], row.groups, -1)
                mean, var = jnp.mean(grouped, -1, keepdims=True), jnp.var(grouped, -1, keepdims=True)
                flat = ((grouped - mean) * jax.lax.rsqrt(var + EPS)).reshape(first.shape)
                return jnp.moveaxis(flat, 1, channel) * w.reshape(per_channel) + b.reshape(per_channel)
            case "softmax":
                return jax.nn.softmax(x, -1)
            case "log_softmax":
                return jax.nn.log_softmax(x, -1)
            case _:
                keep = jax.random.bernoulli(jax.random.key(1), 0.5, x.shape)
                return jnp.where(keep, x * 2, 0)

    compiled = jax.jit(function)
    return lambda: compiled(x, w, b, rm, rv).block_until_ready()


def _onnx(problem: Problem, threads: int, best: bool) -> Callable[[], Any] | None:
    row = problem.row
    if row.direction == "backward" or row.layout == "nhwc" or row.dtype != "float32":
        return None
    if row.op == "batch_norm" and row.direction != "eval":
        return None
    if importlib.util.find_spec("onnx") is None:
        return None
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper

    nodes = {
        "batch_norm": ("BatchNormalization", "xwbmv", {"epsilon": EPS}),
        "layer_norm": ("LayerNormalization", "xwb", {"epsilon": EPS, "axis": -1}),
        "rms_norm": ("RMSNormalization", "xw", {"epsilon": EPS, "axis": -1}),
        "group_norm": ("GroupNormalization", "xwb", {"epsilon": EPS, "num_groups": row.groups}),
        "instance_norm": ("InstanceNormalization", "xwb", {"epsilon": EPS}),
        "softmax": ("Softmax", "x", {"axis": -1}),
        "log_softmax": ("LogSoftmax", "x", {"axis": -1}),
    }
    if row.op not in nodes:
        return None
    kind, letters, attributes = nodes[row.op]
    feeds = dict(
        zip("xwbmv", (problem.x, problem.weight, problem.bias, problem.running_mean, problem.running_var), strict=True)
    )
    graph = helper.make_graph(
        [helper.make_node(kind, list(letters), ["y"], **attributes)],
        "row",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(row.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(row.shape))],
        [onnx.numpy_helper.from_array(feeds[letter], letter) for letter in letters if letter != "x"],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Its threads would otherwise spin on while the next contender has its turn.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # whatever this build of ONNX Runtime lacks, it takes no part in the row
        return None
    x = problem.x
    if not best:
        return lambda: session.run(None, {"x": x})
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    y = np.empty_like(x)
    binding.bind_output("y", "cpu", 0, np.float32, list(row.shape), y.ctypes.data)

    def bound(keep: Any = y) -> None:
        session.run_with_iobinding(binding)

    return bound
