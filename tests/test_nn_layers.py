"""Every layer: its gradients are the derivatives of its values, and both agree with torch where it is installed.

One table of layers; central differences in float64 along random directions for the input and each parameter, dy at random; then
torch, loaded from our state dictionary, on the same input, in training and in evaluation, float32 and float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastnorm import nn

# name: (our layer for a dtype, torch's class and arguments or None, shape of x)
LAYERS: dict[
    str, tuple[Callable[[Any], nn.Module], tuple[str, tuple[Any, ...], dict[str, Any]] | None, tuple[int, ...]]
] = {
    "linear": (lambda d: nn.Linear(5, 7, dtype=d), ("Linear", (5, 7), {}), (6, 5)),
    "linear without bias, 3 axes": (
        lambda d: nn.Linear(5, 7, bias=False, dtype=d),
        ("Linear", (5, 7), {"bias": False}),
        (2, 3, 5),
    ),
    "conv": (
        lambda d: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, dtype=d),
        ("Conv2d", (4, 6, 3), {"stride": 2, "padding": 1, "groups": 2}),
        (3, 4, 7, 8),
    ),
    "max pool": (lambda d: nn.MaxPool2d(3, 2, 1), ("MaxPool2d", (3, 2, 1), {}), (2, 3, 7, 8)),
    "average pool": (lambda d: nn.AvgPool2d(2), ("AvgPool2d", (2,), {}), (2, 3, 7, 8)),
    "flatten": (lambda d: nn.Flatten(), ("Flatten", (), {}), (2, 3, 4)),
    "identity": (lambda d: nn.Identity(), ("Identity", (), {}), (2, 3, 4)),
    "relu": (lambda d: nn.ReLU(), ("ReLU", (), {}), (4, 9)),
    "sigmoid": (lambda d: nn.Sigmoid(), ("Sigmoid", (), {}), (4, 9)),
    "tanh": (lambda d: nn.Tanh(), ("Tanh", (), {}), (4, 9)),
    "softmax": (lambda d: nn.Softmax(1), ("Softmax", (1,), {}), (4, 9, 2)),
    "batch norm 1d": (lambda d: nn.BatchNorm1d(5, dtype=d), ("BatchNorm1d", (5,), {}), (8, 5)),
    "batch norm 1d over length": (lambda d: nn.BatchNorm1d(5, dtype=d), ("BatchNorm1d", (5,), {}), (4, 5, 3)),
    "batch norm 2d": (
        lambda d: nn.BatchNorm2d(5, 1e-3, 0.3, dtype=d),
        ("BatchNorm2d", (5, 1e-3, 0.3), {}),
        (3, 5, 4, 2),
    ),
    "batch norm 2d cumulative": (
        lambda d: nn.BatchNorm2d(5, momentum=None, dtype=d),
        ("BatchNorm2d", (5,), {"momentum": None}),
        (3, 5, 4, 2),
    ),
    "batch norm 2d untracked": (
        lambda d: nn.BatchNorm2d(5, track_running_stats=False, affine=False, dtype=d),
        ("BatchNorm2d", (5,), {"track_running_stats": False, "affine": False}),
        (3, 5, 4, 2),
    ),
    "batch norm 3d": (lambda d: nn.BatchNorm3d(4, dtype=d), ("BatchNorm3d", (4,), {}), (2, 4, 3, 2, 2)),
    "batch norm + relu": (lambda d: nn.BatchNorm2d(5, activation="relu", dtype=d), None, (3, 5, 4, 2)),
    "batch norm, channels last": (lambda d: nn.BatchNorm2d(5, axis=-1, dtype=d), None, (3, 4, 2, 5)),
    "layer norm": (lambda d: nn.LayerNorm((3, 4), dtype=d), ("LayerNorm", ((3, 4),), {}), (5, 3, 4)),
    "layer norm without bias": (
        lambda d: nn.LayerNorm(4, bias=False, dtype=d),
        ("LayerNorm", (4,), {"bias": False}),
        (5, 3, 4),
    ),
    "rms norm": (lambda d: nn.RMSNorm(7, dtype=d), ("RMSNorm", (7,), {}), (5, 7)),
    "group norm": (lambda d: nn.GroupNorm(3, 6, dtype=d), ("GroupNorm", (3, 6), {}), (2, 6, 3, 4)),
    "group norm + relu": (lambda d: nn.GroupNorm(3, 6, activation="relu", dtype=d), None, (2, 6, 3, 4)),
    "instance norm 1d": (
        lambda d: nn.InstanceNorm1d(3, affine=True, dtype=d),
        ("InstanceNorm1d", (3,), {"affine": True}),
        (4, 3, 6),
    ),
    "instance norm 2d": (lambda d: nn.InstanceNorm2d(3, dtype=d), ("InstanceNorm2d", (3,), {}), (4, 3, 2, 5)),
    "instance norm 2d tracked": (
        lambda d: nn.InstanceNorm2d(3, affine=True, track_running_stats=True, dtype=d),
        ("InstanceNorm2d", (3,), {"affine": True, "track_running_stats": True}),
        (4, 3, 2, 5),
    ),
    "instance norm 3d": (lambda d: nn.InstanceNorm3d(3, dtype=d), ("InstanceNorm3d", (3,), {}), (2, 3, 2, 2, 3)),
    "switchable norm": (lambda d: nn.SwitchableNorm2d(4, dtype=d), None, (3, 4, 5, 2)),
    "weight-normed linear": (lambda d: nn.weight_norm(nn.Linear(5, 7, dtype=d)), None, (6, 5)),
    "weight-normed conv": (lambda d: nn.weight_norm(nn.Conv2d(2, 3, 2, dtype=d), dim=1), None, (2, 2, 4, 4)),
    "dropout": (lambda d: nn.Dropout(0.4), None, (6, 7)),
    "sequence": (
        lambda d: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, bias=False, dtype=d),
            nn.BatchNorm2d(4, dtype=d),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 3, dtype=d),
        ),
        None,
        (3, 2, 4, 4),
    ),
}
TORCH = [name for name, (_, torch_layer, _) in LAYERS.items() if torch_layer is not None]


def make(name: str, dtype: Any, rng: np.random.Generator) -> tuple[nn.Module, np.ndarray]:
    """The layer with every parameter and running statistic at random, and an input."""
    nn.manual_seed(7)
    layer = LAYERS[name][0](dtype)
    for parameter in layer.parameters():
        parameter.data[...] = parameter.data + 0.5 * rng.standard_normal(parameter.shape)
    for key, buffer in layer.named_buffers():
        if key.endswith("running_mean"):
            buffer[...] = rng.standard_normal(buffer.shape)
        elif key.endswith("running_var"):
            buffer[...] = rng.uniform(0.5, 2.0, buffer.shape)
    return layer, rng.standard_normal(LAYERS[name][2]).astype(dtype)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", LAYERS)
def test_backward_is_the_derivative_of_forward(name: str, training: bool) -> None:
    rng = np.random.default_rng(3)
    layer, x = make(name, np.float64, rng)
    layer.train(training)
    start, seeds = layer.state_dict(), nn.get_rng_state()

    def forward(value: np.ndarray) -> np.ndarray:
        """The layer from the same state each time: running statistics and masks are not part of the function."""
        nn.set_rng_state(seeds)
        for (_, buffer), (_, kept) in zip(layer.named_buffers(), buffers, strict=True):
            buffer[...] = kept
        return layer(value)

    buffers = [(key, start[key]) for key, _ in layer.named_buffers()]
    dy = rng.standard_normal(forward(x).shape)
    dx = layer.backward(dy)
    assert dx.shape == x.shape and dx.dtype == x.dtype

    def check(value: np.ndarray, gradient: np.ndarray) -> None:
        u, t, kept = rng.standard_normal(value.shape), 1e-6, value.copy()
        ends = []
        for sign in (1, -1):
            value[...] = kept + sign * t * u
            ends.append(float((dy * forward(x)).sum()))
        value[...] = kept
        expected = float((u * gradient).sum())
        assert (ends[0] - ends[1]) / (2 * t) == pytest.approx(expected, rel=1e-6, abs=1e-6)

    check(x, dx)
    for _, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.shape == parameter.shape
        check(parameter.data, parameter.grad.copy())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", TORCH)
def test_agrees_with_torch(name: str, dtype: Any, training: bool) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    layer, x = make(name, dtype, rng)
    torch_layer = LAYERS[name][1]
    assert torch_layer is not None
    kind, arguments, options = torch_layer
    theirs = getattr(torch.nn, kind)(*arguments, **options).to(torch.float32 if dtype is np.float32 else torch.float64)
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in layer.state_dict().items()})
    tolerance = 2e-5 if dtype is np.float32 else 1e-11
    layer.train(training)
    theirs.train(training)
    for _ in range(2):
        layer.zero_grad()
        theirs.zero_grad()
        tx = torch.tensor(x, requires_grad=True)
        y, ty = layer(x), theirs(tx)
        assert y.dtype == dtype
        np.testing.assert_allclose(y, ty.detach().numpy(), tolerance, tolerance)
        dy = rng.standard_normal(y.shape).astype(dtype)
        ty.backward(torch.from_numpy(dy))
        np.testing.assert_allclose(layer.backward(dy), tx.grad.numpy(), tolerance, tolerance)
        for (key, ours), (their_key, parameter) in zip(
            layer.named_parameters(), theirs.named_parameters(), strict=True
        ):
            assert key == their_key
            assert ours.grad is not None
            np.testing.assert_allclose(ours.grad, parameter.grad.numpy(), 10 * tolerance, 10 * tolerance)
        x = rng.standard_normal(x.shape).astype(dtype)
    for (key, ours_), (their_key, buffer) in zip(layer.named_buffers(), theirs.named_buffers(), strict=True):
        assert key == their_key
        if not (kind.startswith("Instance") and key == "num_batches_tracked"):
            np.testing.assert_allclose(ours_, buffer.numpy(), tolerance, tolerance)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(6, 5), (3, 5, 4)])
def test_cross_entropy_agrees_with_torch(shape: tuple[int, ...], reduction: str) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    logits, weight = rng.standard_normal(shape), rng.uniform(0.5, 2.0, shape[1])
    targets = rng.integers(0, shape[1], (shape[0], *shape[2:]))
    targets.flat[1] = -100
    ours = nn.CrossEntropyLoss(weight, reduction=reduction, label_smoothing=0.1)
    theirs = torch.nn.CrossEntropyLoss(torch.from_numpy(weight), reduction=reduction, label_smoothing=0.1)
    tx = torch.tensor(logits, requires_grad=True)
    loss, their_loss = ours(logits, targets), theirs(tx, torch.from_numpy(targets))
    np.testing.assert_allclose(loss, their_loss.detach().numpy(), 1e-12, 1e-12)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    if reduction == "none":
        dy = rng.standard_normal(targets.shape)
        their_loss.backward(torch.from_numpy(dy))
        dlogits = ours.backward(dy)
    else:
        their_loss.backward()
        dlogits = ours.backward()
    np.testing.assert_allclose(dlogits, tx.grad.numpy(), 1e-12, 1e-12)


def test_first_batch_replaces_the_initial_statistics_only_once() -> None:
    rng = np.random.default_rng(6)
    norm = nn.BatchNorm1d(3, momentum=0.25, init_running_from_first_batch=True, dtype=np.float64)
    first, second = rng.standard_normal((2, 10, 3)) + 5
    norm(first)
    np.testing.assert_allclose(norm.running_mean, first.mean(0), 1e-12)
    np.testing.assert_allclose(norm.running_var, first.var(0, ddof=1), 1e-12)
    norm(second)
    np.testing.assert_allclose(norm.running_mean, 0.75 * first.mean(0) + 0.25 * second.mean(0), 1e-12)
    norm.reset_running_stats()
    assert norm.num_batches_tracked == 0 and not norm.running_mean.any() and (norm.running_var == 1).all()


def test_empty_and_failed_batches_are_not_counted() -> None:
    norm = nn.BatchNorm1d(3, momentum=None)
    assert norm(np.empty((0, 3), np.float32)).shape == (0, 3)
    with pytest.raises(ValueError, match="1 value per channel"):
        norm(np.ones((1, 3), np.float32))
    assert norm.num_batches_tracked == 0
    norm(np.ones((2, 3), np.float32))
    assert norm.num_batches_tracked == 1 and (norm.running_mean == 1).all()


def test_evaluation_changes_no_state() -> None:
    rng = np.random.default_rng(7)
    norm = nn.BatchNorm2d(3).eval()
    before = norm.state_dict()
    norm(rng.standard_normal((4, 3, 2, 2)).astype(np.float32))
    for key, value in norm.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


def test_residual_is_added_before_the_activation_and_has_its_gradient() -> None:
    rng = np.random.default_rng(8)
    x, r, dy = rng.standard_normal((3, 4, 5, 2, 2))
    fused, plain = nn.BatchNorm2d(5, activation="relu", dtype=np.float64), nn.BatchNorm2d(5, dtype=np.float64)
    y = fused(x, residual=r)
    np.testing.assert_allclose(y, np.maximum(plain(x) + r, 0), 1e-12, 1e-12)
    dx, dr = fused.backward(dy)
    np.testing.assert_array_equal(dr, np.where(y > 0, dy, 0))
    np.testing.assert_allclose(dx, plain.backward(dr), 1e-12, 1e-12)


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_residual_before_layer_and_rms_norm_gives_the_sum_too(kind: Any) -> None:
    rng = np.random.default_rng(13)
    x, r, dy, ds = rng.standard_normal((4, 5, 6))
    fused, plain = kind(6, dtype=np.float64), kind(6, dtype=np.float64)
    y, s = fused(x, residual=r)
    np.testing.assert_array_equal(s, x + r)
    np.testing.assert_array_equal(y, plain(x + r))
    np.testing.assert_array_equal(fused.backward(dy, ds), plain.backward(dy) + ds)
    np.testing.assert_array_equal(fused.weight.grad, plain.weight.grad)


def test_fused_activation_equals_a_relu_layer() -> None:
    rng = np.random.default_rng(9)
    x, dy = rng.standard_normal((2, 4, 6, 3, 3)).astype(np.float32)
    for fused, norm in [
        (nn.BatchNorm2d(6, activation="relu"), nn.BatchNorm2d(6)),
        (nn.GroupNorm(2, 6, activation="relu"), nn.GroupNorm(2, 6)),
        (nn.InstanceNorm2d(6, affine=True, activation="relu"), nn.InstanceNorm2d(6, affine=True)),
    ]:
        apart = nn.Sequential(norm, nn.ReLU())
        np.testing.assert_array_equal(fused(x), apart(x))
        np.testing.assert_array_equal(fused.backward(dy), apart.backward(dy))


def test_dropout_masks_follow_the_seed() -> None:
    x = np.ones((50, 40), np.float32)
    nn.manual_seed(11)
    layer = nn.Dropout(0.3)
    first, second = layer(x), layer(x)
    np.testing.assert_array_equal(layer.backward(x), second)
    assert (first != second).any()
    state = nn.get_rng_state()
    third = layer(x)
    nn.set_rng_state(state)
    np.testing.assert_array_equal(layer(x), third)
    nn.manual_seed(11)
    np.testing.assert_array_equal(layer(x), first)
    np.testing.assert_array_equal(nn.Dropout(0.3, rng=5)(x), nn.Dropout(0.3, rng=5)(x))
    assert set(np.unique(first)) == {np.float32(0), np.float32(1) / np.float32(0.7)}
    assert layer.eval()(x) is x


def test_nan_stays_nan_in_activations_and_pooling() -> None:
    x = np.zeros((1, 1, 2, 4), np.float32)
    x[0, 0, 0, 1] = np.nan
    for layer in (nn.ReLU(), nn.Sigmoid(), nn.Tanh()):
        assert np.isnan(layer(x)).sum() == 1
    assert np.isnan(nn.MaxPool2d(2)(x)).tolist() == [[[[True, False]]]]


def test_sigmoid_is_finite_and_quiet_at_any_magnitude() -> None:
    x = np.array([-1e30, -200.0, -1.0, 0.0, 200.0, 1e30], np.float32)
    with np.errstate(over="raise", invalid="raise"):
        y = nn.Sigmoid()(x)
    np.testing.assert_allclose(y, [0, 0, 1 / (1 + np.e), 0.5, 1, 1], 1e-6)


@pytest.mark.parametrize(
    ("make_layer", "error", "words"),
    [
        (lambda: nn.Linear(0, 3), ValueError, "in_features"),
        (lambda: nn.Linear(2.5, 3), TypeError, "in_features"),
        (lambda: nn.Linear(2, 3, dtype=np.float16), TypeError, "float32 or float64"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), ValueError, "groups"),
        (lambda: nn.Conv2d(3, 4, (3, 3, 3)), TypeError, "kernel_size"),
        (lambda: nn.Conv2d(3, 4, 3, padding="full"), ValueError, "padding"),
        (lambda: nn.Conv2d(3, 4, 3, stride=2, padding="same"), ValueError, "stride 1"),
        (lambda: nn.MaxPool2d(2, padding=2), ValueError, "padding"),
        (lambda: nn.BatchNorm2d(3, eps=-1.0), ValueError, "eps"),
        (lambda: nn.BatchNorm2d(3, eps=float("nan")), ValueError, "eps"),
        (lambda: nn.BatchNorm2d(3, momentum=1.5), ValueError, "momentum"),
        (lambda: nn.BatchNorm2d(3, activation="gelu"), ValueError, "activation"),
        (lambda: nn.GroupNorm(4, 6), ValueError, "num_groups"),
        (lambda: nn.LayerNorm(()), ValueError, "normalized_shape"),
        (lambda: nn.Dropout(1.0), ValueError, "p must"),
        (lambda: nn.CrossEntropyLoss(reduction="max"), ValueError, "reduction"),
        (lambda: nn.CrossEntropyLoss(label_smoothing=2.0), ValueError, "label_smoothing"),
    ],
)
def test_wrong_arguments_are_named(make_layer: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make_layer()


@pytest.mark.parametrize(
    ("layer", "x", "error", "words"),
    [
        (nn.Linear(3, 2), np.ones((4, 5), np.float32), ValueError, "3 features"),
        (nn.Linear(3, 2), np.ones((4, 3)), TypeError, "float64"),
        (nn.Linear(3, 2), [[1.0, 2.0, 3.0]], TypeError, "numpy array"),
        (nn.Conv2d(3, 2, 3), np.ones((4, 3, 5), np.float32), ValueError, "4 axes"),
        (nn.Conv2d(3, 2, 3), np.ones((1, 3, 2, 5), np.float32), ValueError, "spans 3"),
        (nn.MaxPool2d(3), np.ones((1, 3, 2, 5), np.float32), ValueError, "spans 3"),
        (nn.BatchNorm2d(3), np.ones((4, 3), np.float32), ValueError, "4 axes"),
        (nn.BatchNorm1d(3), np.ones((4, 5), np.float32), ValueError, "3 channels"),
        (nn.BatchNorm1d(3), np.ones((4, 3), np.int64), TypeError, "int64"),
        (nn.GroupNorm(2, 6), np.ones((4, 4, 2), np.float32), ValueError, "6 channels"),
        (nn.LayerNorm(6), np.ones((4, 4), np.float32), ValueError, "normalized_shape"),
        (nn.Flatten(2, 1), np.ones((4, 4, 2), np.float32), ValueError, "start_dim"),
    ],
)
def test_wrong_inputs_are_named(layer: nn.Module, x: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        layer(x)
    with pytest.raises(RuntimeError, match="nothing to go back through"):
        layer.backward(x)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(3, 2), (4, 3)),
        (nn.Conv2d(3, 2, 1), (2, 3, 4, 4)),
        (nn.MaxPool2d(2), (2, 3, 4, 4)),
        (nn.Tanh(), (4, 3)),
    ],
)
def test_wrong_gradients_are_named(layer: nn.Module, shape: tuple[int, ...]) -> None:
    y = layer(np.ones(shape, np.float32))
    with pytest.raises(ValueError, match="dy has shape"):
        layer.backward(y[1:])
    layer(np.ones(shape, np.float32))
    with pytest.raises(TypeError, match="dy is float64, the output was float32"):
        layer.backward(y.astype(np.float64))
    layer(np.ones(shape, np.float32))
    with pytest.raises(TypeError, match="numpy array"):
        layer.backward(y.tolist())


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "make_layer",
    [
        lambda d: nn.BatchNorm2d(6, dtype=d),
        lambda d: nn.LayerNorm(4, dtype=d),
        lambda d: nn.RMSNorm(4, dtype=d),
        lambda d: nn.GroupNorm(2, 6, dtype=d),
        lambda d: nn.InstanceNorm2d(6, affine=True, track_running_stats=True, dtype=d),
        lambda d: nn.SwitchableNorm2d(6, dtype=d),
    ],
)
def test_norms_take_half_types_with_parameters_in_float32_or_their_own(make_layer: Any, half: str) -> None:
    dtype = np.dtype(pytest.importorskip("ml_dtypes").bfloat16) if half == "bfloat16" else np.dtype(half)
    rng = np.random.default_rng(12)
    x, dy = rng.standard_normal((2, 3, 6, 5, 4)).astype(dtype)
    exact = make_layer(np.float64)
    y, dx = exact(x.astype(np.float64)), exact.backward(dy.astype(np.float64))
    for kind in (np.float32, dtype):
        layer = make_layer(kind)
        step = 2.0**-8 if half == "bfloat16" else 2.0**-11
        np.testing.assert_allclose(layer(x).astype(np.float64), y, 2 * step, step)
        np.testing.assert_allclose(layer.backward(dy).astype(np.float64), dx, 2 * step, 4 * step)
        for (name, ours), (_, theirs) in zip(layer.named_parameters(), exact.named_parameters(), strict=True):
            assert ours.grad is not None and ours.grad.dtype == np.float32, name
            np.testing.assert_allclose(ours.grad, theirs.grad, 1e-4, 1e-4)
