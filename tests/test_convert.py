"""Converters: states go out and come back unchanged; arrays made by each framework's own rule are understood.

For each framework its update rule is written out here as its documentation or source gives it, run for some batches, and the
converted layer must reproduce the framework's inference formula. Where a framework is installed, the real one is asked.
"""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastnorm import convert, nn
from fastnorm.convert import BatchNormState

WAYS: dict[str, tuple[Callable[..., BatchNormState], Callable[..., Any]]] = {
    name: (getattr(convert, f"from_{name}"), getattr(convert, f"to_{name}"))
    for name in ("torch", "keras", "onnx", "caffe", "mxnet", "paddle")
}


MOMENTUM = {"caffe": "moving_average_fraction"}  # what the others call momentum
MOMENTA = st.floats(0.0, 1.0)


def state(weight: bool = True, bias: bool = True, dtype: Any = np.float32, **settings: Any) -> BatchNormState:
    rng = np.random.default_rng(0)
    return BatchNormState(
        rng.standard_normal(5).astype(dtype),
        rng.uniform(0.1, 3.0, 5).astype(dtype),
        rng.standard_normal(5).astype(dtype) if weight else None,
        rng.standard_normal(5).astype(dtype) if bias else None,
        **settings,
    )


def assert_same(actual: BatchNormState, expected: BatchNormState) -> None:
    """To the last bit; an absent gamma or beta may have come back as ones or zeros."""
    assert (actual.eps, actual.momentum, actual.axis) == (expected.eps, expected.momentum, expected.axis)
    for name, neutral in (("running_mean", None), ("running_var", None), ("weight", np.ones), ("bias", np.zeros)):
        ours, theirs = getattr(actual, name), getattr(expected, name)
        if theirs is None and ours is not None:
            assert neutral is not None
            theirs = neutral(expected.num_features, ours.dtype)
        if theirs is not None:
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("weight", "bias"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("name", WAYS)
def test_round_trips_are_exact(name: str, weight: bool, bias: bool, dtype: Any) -> None:
    come, go = WAYS[name]
    for momentum, eps in ((0.1, 1e-5), (0.01, 1e-3), (0.001, 0.0), (0.3, 1e-12), (0.0, 1.0), (1.0, 2e-5)):
        original = state(weight, bias, dtype, momentum=momentum, eps=eps)
        assert_same(come(*go(original)), original)


@pytest.mark.parametrize("name", WAYS)
@given(momentum=MOMENTA)
def test_any_momentum_goes_there_and_back(name: str, momentum: float) -> None:
    """1 − (1 − p) is not p for most p below 0.5, and 1 − p is 1 for a small one: the other convention alone loses them."""
    come, go = WAYS[name]
    assert come(*go(state(momentum=momentum))).momentum == momentum
    arrays, settings = go(state())
    settings[MOMENTUM.get(name, "momentum")] = momentum
    theirs = come(arrays, settings)
    assert go(theirs)[1] == settings
    for kept in (
        copy.deepcopy(theirs),
        pickle.loads(pickle.dumps(theirs)),
        convert.from_layer(convert.to_layer(theirs)),
    ):
        assert go(kept)[1] == settings
    other = (
        convert.from_onnx(*convert.to_onnx(theirs)) if name != "onnx" else convert.from_keras(*convert.to_keras(theirs))
    )
    assert other.momentum == theirs.momentum
    theirs.momentum = 0.25
    assert go(theirs)[1][MOMENTUM.get(name, "momentum")] == (0.25 if name == "torch" else 0.75), "nothing stale is kept"


@pytest.mark.parametrize("name", [name for name in WAYS if name != "torch"])
@given(momentum=MOMENTA)
def test_through_plain_numbers_a_momentum_is_what_the_documentation_says(name: str, momentum: float) -> None:
    come, go = WAYS[name]

    def through_a_file(momentum: float) -> float:
        arrays, settings = go(state(momentum=momentum))
        back = come(arrays, json.loads(json.dumps(settings))).momentum
        assert back is not None
        return back

    assert abs(through_a_file(momentum) - momentum) <= 2**-53
    assert through_a_file(round(momentum, 15)) == round(momentum, 15)


@pytest.mark.parametrize("name", ["keras", "mxnet", "paddle"])
def test_channels_last_goes_there_and_back(name: str) -> None:
    come, go = WAYS[name]
    assert_same(come(*go(state(axis=-1))), state(axis=-1))


@pytest.mark.parametrize("name", ["torch", "onnx", "caffe"])
def test_channels_last_is_refused_where_there_is_axis_1_alone(name: str) -> None:
    come, go = WAYS[name]
    last = state(axis=-1)
    with pytest.raises(
        ValueError, match=rf"to_{name}: channels are on axis 1 there, the state has axis -1.*state.axis = 1"
    ):
        go(last)
    last.axis = 1
    assert_same(come(*go(last)), state())


def test_absent_parameters_stay_absent_where_the_framework_can_say_so() -> None:
    for name, weight, bias in [
        ("torch", False, False),
        ("keras", False, True),
        ("keras", True, False),
        ("caffe", True, False),
    ]:
        come, go = WAYS[name]
        back = come(*go(state(weight, bias)))
        assert (back.weight is not None, back.bias is not None) == (weight, bias), name
    assert convert.from_mxnet(*convert.to_mxnet(state(weight=False))).weight is None


def test_layers_go_there_and_back() -> None:
    rng = np.random.default_rng(1)
    layer = nn.BatchNorm2d(5, 1e-3, 0.2, axis=-1)
    x = rng.standard_normal((4, 3, 2, 5)).astype(np.float32)
    layer(x)
    layer.weight.data[...] = rng.standard_normal(5)
    back = convert.to_layer(convert.from_layer(layer))
    assert isinstance(back, nn.BatchNorm2d) and not back.training and back.momentum == 0.2
    assert list(back.state_dict()) == list(layer.state_dict())
    np.testing.assert_array_equal(back(x), layer.eval()(x))
    assert back.num_batches_tracked == 1
    with pytest.raises(ValueError, match="tracks no running"):
        convert.from_layer(nn.BatchNorm1d(3, track_running_stats=False))


# ------------------------------------------------------------------------------- each framework's rule, written out


def batches(shape: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [(2 * rng.standard_normal(shape) + 3).astype(np.float32) for _ in range(4)]


def check_inference(converted: BatchNormState, x: np.ndarray, expected: np.ndarray, dimensions: int = 2) -> None:
    np.testing.assert_allclose(convert.to_layer(converted, dimensions)(x), expected, 2e-5, 2e-5)


def averages(
    each: list[np.ndarray], axes: tuple[int, ...], momentum: float, ddof: int
) -> tuple[np.ndarray, np.ndarray]:
    """moving ← momentum·moving + (1 − momentum)·batch from 0 and 1, as Keras, ONNX, MXNet and PaddlePaddle document it."""
    channels = next(size for axis, size in enumerate(each[0].shape) if axis not in axes)
    mean, var = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    for x in each:
        mean = momentum * mean + (1 - momentum) * x.mean(axes)
        var = momentum * var + (1 - momentum) * x.var(axes, ddof=ddof)
    return mean.astype(np.float32), var.astype(np.float32)


def continue_with_ours(converted: BatchNormState, x: np.ndarray) -> nn.BatchNorm2d:
    """One more training batch on our side."""
    layer = convert.to_layer(converted)
    assert isinstance(layer, nn.BatchNorm2d)
    layer.train()(x)
    return layer


def test_kerass_rule() -> None:
    each = batches((6, 4, 3, 5))
    gamma, beta = np.random.default_rng(3).standard_normal((2, 5)).astype(np.float32)
    mean, var = averages(each[:3], (0, 1, 2), 0.99, 0)
    converted = convert.from_keras([gamma, beta, mean, var])
    assert (converted.eps, converted.momentum, converted.axis) == (1e-3, 0.01, -1)
    check_inference(converted, each[3], gamma * (each[3] - mean) / np.sqrt(var + np.float32(1e-3)) + beta)
    next_mean, _ = averages(each, (0, 1, 2), 0.99, 0)
    np.testing.assert_allclose(continue_with_ours(converted, each[3]).running_mean, next_mean, 1e-5)
    named = convert.from_keras(
        {"beta": beta, "moving_mean": mean, "moving_variance": var}, {"scale": False, "axis": [3], "name": "bn"}
    )
    assert named.weight is None and named.axis == 3


def test_onnxs_rule() -> None:
    each = batches((6, 5, 4, 3))
    scale, b = np.random.default_rng(4).standard_normal((2, 5)).astype(np.float32)
    mean, var = averages(each[:3], (0, 2, 3), 0.9, 0)
    converted = convert.from_onnx([scale, b, mean, var])
    assert (converted.eps, converted.momentum, converted.axis) == (1e-5, 0.1, 1)
    wide = (5, 1, 1)
    expected = (each[3] - mean.reshape(wide)) / np.sqrt(var.reshape(wide) + 1e-5) * scale.reshape(wide) + b.reshape(
        wide
    )
    check_inference(converted, each[3], expected)
    next_mean, _ = averages(each, (0, 2, 3), 0.9, 0)
    np.testing.assert_allclose(continue_with_ours(converted, each[3]).running_mean, next_mean, 1e-5)


def test_caffes_rule() -> None:
    """Sums and their factor, the bias correction, and the Scale layer apart."""
    each, fraction = batches((6, 5, 4, 3)), 0.999
    gamma, beta = np.random.default_rng(5).standard_normal((2, 5)).astype(np.float32)
    mean, var, factor = np.zeros(5), np.zeros(5), 0.0
    for x in each:
        m = x.size // 5
        factor = factor * fraction + 1
        mean = fraction * mean + x.mean((0, 2, 3))
        var = fraction * var + m / (m - 1) * x.var((0, 2, 3))
    norm = [mean.astype(np.float32), var.astype(np.float32), np.array([factor], np.float32)]
    converted = convert.from_caffe((norm, [gamma, beta]))
    assert converted.momentum == 0.001 and converted.eps == 1e-5
    wide = (5, 1, 1)
    normalised = (each[0] - (mean / factor).reshape(wide)) / np.sqrt((var / factor).reshape(wide) + 1e-5)
    check_inference(converted, each[0], normalised * gamma.reshape(wide) + beta.reshape(wide))
    check_inference(convert.from_caffe((norm, None)), each[0], normalised)
    legacy = [norm[0].reshape(1, 5, 1, 1), norm[1].reshape(1, 5, 1, 1), norm[2].reshape(1, 1, 1, 1)]
    assert_same(convert.from_caffe((legacy, [gamma.reshape(1, 5, 1, 1)])), convert.from_caffe((norm, [gamma])))
    untrained = convert.from_caffe(([*norm[:2], np.zeros(1, np.float32)], None))
    assert not untrained.running_mean.any() and not untrained.running_var.any()


def test_mxnets_rule() -> None:
    each = batches((6, 5, 4, 3))
    gamma, beta = np.random.default_rng(6).standard_normal((2, 5)).astype(np.float32)
    mean, var = averages(each[:3], (0, 2, 3), 0.9, 0)
    operator = {"bn0_gamma": gamma, "bn0_beta": beta, "bn0_moving_mean": mean, "bn0_moving_var": var}
    fixed = convert.from_mxnet(operator, prefix="bn0_")
    assert (fixed.eps, fixed.momentum, fixed.weight) == (1e-3, 0.1, None)
    wide = (5, 1, 1)
    normalised = (each[3] - mean.reshape(wide)) / np.sqrt(var.reshape(wide) + 1e-3)
    check_inference(fixed, each[3], normalised + beta.reshape(wide))
    free = convert.from_mxnet(operator, {"fix_gamma": False}, prefix="bn0_")
    check_inference(free, each[3], normalised * gamma.reshape(wide) + beta.reshape(wide))
    gluon = convert.from_mxnet({"gamma": gamma, "beta": beta, "running_mean": mean, "running_var": var})
    assert gluon.eps == 1e-5 and gluon.weight is not None
    without = {"gamma": gamma, "beta": beta, "running_mean": mean, "running_var": var}
    assert convert.from_mxnet(without, {"scale": False}).weight is None


def test_paddles_rule() -> None:
    each = batches((6, 5, 4, 3))
    gamma, beta = np.random.default_rng(7).standard_normal((2, 5)).astype(np.float32)
    mean, var = averages(each[:3], (0, 2, 3), 0.9, 0)
    arrays = {"bn.weight": gamma, "bn.bias": beta, "bn._mean": mean, "bn._variance": var}
    converted = convert.from_paddle(arrays, prefix="bn.")
    assert (converted.eps, converted.momentum, converted.axis) == (1e-5, 0.1, 1)
    wide = (5, 1, 1)
    expected = gamma.reshape(wide) * (each[3] - mean.reshape(wide)) / np.sqrt(var.reshape(wide) + 1e-5) + beta.reshape(
        wide
    )
    check_inference(converted, each[3], expected)
    assert convert.from_paddle(arrays, {"data_format": "NHWC"}, prefix="bn.").axis == -1


# ------------------------------------------------------------------------------------------------ the real frameworks


def test_the_real_torch() -> None:
    torch = pytest.importorskip("torch")
    x = batches((6, 5, 4, 3))
    theirs = torch.nn.Sequential(torch.nn.Conv2d(5, 5, 1), torch.nn.BatchNorm2d(5, eps=1e-4, momentum=0.2))
    for batch in x:
        theirs(torch.from_numpy(batch))
    converted = convert.from_torch(theirs.state_dict(), {"eps": 1e-4, "momentum": 0.2}, prefix="1.")
    assert converted.num_batches_tracked == 4
    theirs.eval()
    check_inference(converted, x[0], theirs[1](torch.from_numpy(x[0])).detach().numpy())
    arrays, settings = convert.to_torch(state(eps=2e-3))
    made = torch.nn.BatchNorm2d(**settings).eval()
    made.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()})
    check_inference(state(eps=2e-3), x[0], made(torch.from_numpy(x[0])).detach().numpy())


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_the_real_keras() -> None:
    keras = pytest.importorskip("keras")
    x = batches((6, 4, 3, 5))
    theirs = keras.layers.BatchNormalization()
    for batch in x:
        theirs(batch, training=True)
    converted = convert.from_keras([np.asarray(w) for w in theirs.get_weights()], theirs.get_config())
    assert (converted.eps, converted.momentum) == (1e-3, 0.01)
    check_inference(converted, x[0], np.asarray(theirs(x[0], training=False)))
    mean, var = averages(x, (0, 1, 2), 0.99, 0)
    np.testing.assert_allclose(converted.running_mean, mean, 1e-5)
    np.testing.assert_allclose(converted.running_var, var, 1e-5)
    arrays, settings = convert.to_keras(state(bias=False, axis=-1))
    made = keras.layers.BatchNormalization(**settings)
    made.build(x[0].shape)
    made.set_weights(arrays)
    check_inference(state(bias=False, axis=-1), x[0], np.asarray(made(x[0], training=False)))


@pytest.mark.filterwarnings("ignore:When training, we now always track")
@pytest.mark.parametrize(("weight", "bias"), [(True, True), (False, False)])
def test_the_real_paddle(weight: bool, bias: bool) -> None:
    paddle = pytest.importorskip("paddle")
    x = batches((6, 5, 4, 3))
    theirs = paddle.nn.BatchNorm2D(5)
    for batch in x:
        theirs(paddle.to_tensor(batch))
    converted = convert.from_paddle({name: value.numpy() for name, value in theirs.state_dict().items()})
    mean, var = averages(x, (0, 2, 3), 0.9, 0)
    np.testing.assert_allclose(converted.running_mean, mean, 1e-5)
    np.testing.assert_allclose(converted.running_var, var, 1e-5)
    theirs.eval()
    check_inference(converted, x[0], theirs(paddle.to_tensor(x[0])).numpy())
    ours = state(weight, bias, eps=2e-3)
    arrays, settings = convert.to_paddle(ours)
    made = paddle.nn.BatchNorm2D(**settings)
    assert made.set_state_dict(arrays) == ([], [])
    made.eval()
    check_inference(ours, x[0], made(paddle.to_tensor(x[0])).numpy())


def run_onnx(arrays: list[np.ndarray], settings: dict[str, Any], x: np.ndarray, training: int = 0) -> list[np.ndarray]:
    """One BatchNormalization node, run by the reference implementation that ships with onnx."""
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    names = ["scale", "B", "mean", "var"]
    outputs = ["y", "next_mean", "next_var"] if training else ["y"]
    node = onnx.helper.make_node("BatchNormalization", ["x", *names], outputs, training_mode=training, **settings)
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [node],
        "one_norm",
        [onnx.helper.make_tensor_value_info("x", kind, x.shape)],
        [onnx.helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in zip(names, arrays, strict=True)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 15)])
    return list(ReferenceEvaluator(model).run(None, {"x": x}))


def test_the_real_onnx() -> None:
    x = batches((6, 5, 4, 3))[0]
    ours = state(eps=1e-3, momentum=0.2)
    arrays, settings = convert.to_onnx(ours)
    assert settings == {"epsilon": 1e-3, "momentum": 0.8}
    check_inference(ours, x, run_onnx(arrays, settings, x)[0])
    _, mean, var = run_onnx(arrays, settings, x, training=1)
    layer = convert.to_layer(ours).train()
    layer(x)
    np.testing.assert_allclose(layer.running_mean, mean, 1e-5)
    m = x.size // 5
    unbiased = 0.8 * ours.running_var + (var - 0.8 * ours.running_var) * m / (m - 1)
    np.testing.assert_allclose(layer.running_var, unbiased, 1e-5)


def test_the_real_onnx_runtime() -> None:
    runtime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    x = batches((6, 5, 4, 3))[0]
    arrays, settings = convert.to_onnx(state())
    names, kind = ["scale", "B", "mean", "var"], onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("BatchNormalization", ["x", *names], ["y"], **settings)],
        "one_norm",
        [onnx.helper.make_tensor_value_info("x", kind, x.shape)],
        [onnx.helper.make_tensor_value_info("y", kind, x.shape)],
        [onnx.numpy_helper.from_array(array, name) for name, array in zip(names, arrays, strict=True)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 15)], ir_version=8)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    check_inference(state(), x, session.run(None, {"x": x})[0])


def test_wrong_arrays_and_settings_are_named() -> None:
    five, four = np.ones(5, np.float32), np.ones(4, np.float32)
    torchs, caffes = {"running_mean": five, "running_var": five}, ([five, five, five[:1]], None)
    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: BatchNormState(five, four), ValueError, r"running_var: expected shape \(5,\), got \(4,\)"),
        (lambda: BatchNormState(five, five, weight=np.ones((5, 1))), ValueError, "weight"),
        (lambda: BatchNormState(np.arange(5), five), TypeError, "running_mean.*int64"),
        (lambda: BatchNormState(five, np.array([1, 0, -1, -2, 3.0])), ValueError, "running_var.*-1.0 at index 2"),
        (lambda: BatchNormState(five, five * np.nan), ValueError, "running_var.*nan at index 0"),
        (lambda: BatchNormState(five, five, eps=-1e-5), ValueError, "eps.*at least 0, got -1e-05"),
        (lambda: BatchNormState(five, five, eps=math.nan), ValueError, "eps"),
        (lambda: BatchNormState(five, five, eps=math.inf), ValueError, "eps"),
        (lambda: BatchNormState(five, five, momentum=1.5), ValueError, "momentum"),
        (lambda: BatchNormState(five, five, momentum=math.nan), ValueError, "momentum"),
        (lambda: BatchNormState(five, five, num_batches_tracked=-1), ValueError, "num_batches_tracked"),
        (
            lambda: convert.from_torch(torchs, {"epsilon": 1e-3}),
            ValueError,
            "from_torch: unknown settings 'epsilon'; kn",
        ),
        (lambda: convert.from_keras([five] * 4, {"eps": 1e-3}), ValueError, "from_keras: unknown settings 'eps'"),
        (lambda: convert.from_onnx([five] * 4, {"eps": 1, "axis": 1}), ValueError, "unknown settings 'eps', 'axis'"),
        (lambda: convert.from_caffe(caffes, {"momentum": 0.9}), ValueError, "from_caffe: unknown settings 'momentum'"),
        (lambda: convert.from_mxnet({}, {"fixgamma": True}), ValueError, "from_mxnet: unknown settings 'fixgamma'"),
        (lambda: convert.from_mxnet({}, {"fix_gamma": "False"}), ValueError, "fix_gamma must be True or False"),
        (lambda: convert.from_paddle({}, {"eps": 1e-3}), ValueError, "from_paddle: unknown settings 'eps'"),
        (lambda: convert.from_torch({"weight": five}), ValueError, "'running_mean' is missing; there are weight"),
        (lambda: convert.from_keras([five, five]), ValueError, "expected 4 arrays"),
        (lambda: convert.from_keras([five] * 4, {"renorm": True}), ValueError, "renorm"),
        (lambda: convert.from_keras([five] * 4, {"axis": [1, 2]}), ValueError, "one axis"),
        (lambda: convert.from_keras([five] * 4, {"momentum": 1.5}), ValueError, "momentum"),
        (lambda: convert.from_onnx([five] * 3), ValueError, "expected 4 arrays"),
        (lambda: convert.from_onnx([five] * 4, {"spatial": 0}), ValueError, "spatial"),
        (lambda: convert.from_caffe(([five, five], None)), ValueError, "scale factor"),
        (lambda: convert.from_caffe(([five, five, five], None)), ValueError, "one number"),
        (lambda: convert.from_caffe(([five, five, five[:1]], [five] * 3)), ValueError, "3 blobs"),
        (lambda: convert.from_mxnet({"gamma": five}), ValueError, "moving_mean"),
        (lambda: convert.from_paddle({"_mean": five}), ValueError, "_variance"),
        (lambda: convert.from_paddle({}, {"data_format": "CN"}), ValueError, "data_format"),
        (lambda: convert.to_paddle(state(axis=2)), ValueError, "axis 1 or -1"),
        (lambda: convert.to_onnx(state(axis=-1)), ValueError, "axis 1"),
        (lambda: convert.to_keras(state(momentum=None)), ValueError, "cumulative"),
        (lambda: convert.to_layer(state(), 4), ValueError, "dimensions"),
    ]
    for call, error, words in cases:
        with pytest.raises(error, match=words):
            call()


def test_eps_is_carried_and_matters_where_the_variance_is_small() -> None:
    """The mistake that the table warns of: 1e-5 in place of Keras's 1e-3 is off by sqrt((var + 1e-3)/(var + 1e-5))."""
    tiny = np.full(5, 1e-4, np.float32)
    converted = convert.from_keras([np.ones(5, np.float32), np.zeros(5, np.float32), np.zeros(5, np.float32), tiny])
    x = np.ones((1, 2, 2, 5), np.float32)
    right = convert.to_layer(converted)(x)
    converted.eps = 1e-5
    wrong = convert.to_layer(converted)(x)
    np.testing.assert_allclose(wrong / right, math.sqrt((1e-4 + 1e-3) / (1e-4 + 1e-5)), 1e-5)
