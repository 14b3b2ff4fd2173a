"""Optimisers: each step agrees with torch's, whatever the settings; nothing is allocated; state resumes to the same bits."""

from __future__ import annotations

import copy
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastnorm import nn, optim

RULES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.05}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05}),
    ("RMSprop", {}),
    ("RMSprop", {"alpha": 0.9, "momentum": 0.5, "weight_decay": 0.05}),
    ("RMSprop", {"alpha": 0.9, "momentum": 0.5, "centered": True}),
    ("Adam", {}),
    ("Adam", {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.05}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.02, "weight_decay": 0.3}),
]
IDS = [f"{name} {options}" for name, options in RULES]


def parameters(rng: np.random.Generator, dtype: Any = np.float64) -> list[nn.Parameter]:
    return [nn.Parameter(rng.standard_normal(shape).astype(dtype)) for shape in [(4, 3), (7,), (2, 2, 3)]]


def draw_gradients(params: list[nn.Parameter], rng: np.random.Generator) -> None:
    for parameter in params:
        parameter.grad = rng.standard_normal(parameter.shape).astype(parameter.dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "options"), RULES, ids=IDS)
def test_every_step_agrees_with_torch(name: str, options: dict[str, Any], dtype: Any) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    ours = parameters(rng, dtype)
    theirs = [torch.nn.Parameter(torch.tensor(p.data)) for p in ours]
    our_rule, their_rule = getattr(optim, name)(ours, **options), getattr(torch.optim, name)(theirs, **options)
    tolerance = 1e-5 if dtype is np.float32 else 1e-12
    for step in range(10):
        draw_gradients(ours, rng)
        if step == 4:
            ours[1].grad = None
        for parameter, their in zip(ours, theirs, strict=True):
            their.grad = None if parameter.grad is None else torch.tensor(parameter.grad)
        our_rule.step()
        their_rule.step()
        for parameter, their in zip(ours, theirs, strict=True):
            assert parameter.dtype == dtype
            np.testing.assert_allclose(parameter.data, their.detach().numpy(), tolerance, tolerance)


@pytest.mark.parametrize(("name", "options"), RULES, ids=IDS)
def test_torchs_state_is_taken_over(name: str, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    ours = parameters(rng)
    theirs = [torch.nn.Parameter(torch.tensor(p.data)) for p in ours]
    their_rule = getattr(torch.optim, name)(theirs, **options)
    our_rule = getattr(optim, name)(ours)
    for resumed in (False, True, True):
        draw_gradients(ours, rng)
        for parameter, their in zip(ours, theirs, strict=True):
            their.grad = torch.tensor(parameter.grad)
        if resumed:
            our_rule.step()
        their_rule.step()
        if not resumed:
            our_rule.load_state_dict(their_rule.state_dict())
            for parameter, their in zip(ours, theirs, strict=True):
                parameter.data[...] = their.detach().numpy()
    for parameter, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(parameter.data, their.detach().numpy(), 1e-12, 1e-12)


@pytest.mark.parametrize(("name", "options"), RULES, ids=IDS)
def test_a_step_allocates_nothing(name: str, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(2)
    params = [nn.Parameter(rng.standard_normal(shape).astype(np.float32)) for shape in [(300, 400), (400,)]]
    rule = getattr(optim, name)(params, **{"weight_decay": 0.1, "l1": 0.01, **options})
    draw_gradients(params, rng)
    for _ in range(2):
        rule.step()
    step = peak_of(rule.step)
    assert step < 8192, f"{step} bytes, where one parameter has {params[0].data.nbytes}"
    clip = peak_of(lambda: (optim.clip_grad_norm(params, 1.0), optim.clip_grad_value(params, 0.1)))
    assert clip < params[0].data.nbytes / 2, f"{clip} bytes beyond NumPy's own casting buffers"


def peak_of(call: Callable[[], Any]) -> int:
    """The most memory that was allocated at any moment of the call, in bytes."""
    tracemalloc.start()
    try:
        call()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("name", "options"), RULES, ids=IDS)
def test_state_resumes_to_the_same_bits(name: str, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    params = parameters(rng, np.float32)
    rule = getattr(optim, name)(params, **options)
    gradients = [[rng.standard_normal(p.shape).astype(np.float32) for p in params] for _ in range(6)]

    def advance(some: list[nn.Parameter], some_rule: optim.Optimizer, steps: range) -> None:
        for step in steps:
            for parameter, gradient in zip(some, gradients[step], strict=True):
                parameter.grad = gradient.copy()
            some_rule.step()

    advance(params, rule, range(3))
    twins = [nn.Parameter(p.data.copy()) for p in params]
    twin_rule = getattr(optim, name)(twins, lr=7.0)
    state = rule.state_dict()
    twin_rule.load_state_dict(state)
    advance(params, rule, range(3, 6))
    advance(twins, twin_rule, range(3, 6))
    for parameter, twin in zip(params, twins, strict=True):
        np.testing.assert_array_equal(parameter.data, twin.data)
    again = copy.deepcopy(twin_rule.state_dict())
    assert again["param_groups"] == rule.state_dict()["param_groups"]


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW"])
def test_penalties_are_those_of_the_cost(name: str) -> None:
    """l1 and weight_decay move as their terms in the gradient do."""
    rng = np.random.default_rng(4)
    plain, penalised = parameters(rng), parameters(np.random.default_rng(4))
    penalised[0].data[0, 0] = plain[0].data[0, 0] = 0.0
    decay = {} if name == "AdamW" else {"weight_decay": 0.2}
    first = getattr(optim, name)(plain, lr=0.1, **{key: 0.0 for key in ("weight_decay",) if name == "AdamW"})
    second = getattr(optim, name)(penalised, lr=0.1, l1=0.05, **(decay or {"weight_decay": 0.0}))
    for _ in range(3):
        draw_gradients(penalised, rng)
        for parameter, other in zip(plain, penalised, strict=True):
            assert other.grad is not None
            penalty = 0.05 * np.sign(parameter.data) + decay.get("weight_decay", 0.0) * parameter.data
            parameter.grad = other.grad + penalty
        first.step()
        second.step()
        for parameter, other in zip(plain, penalised, strict=True):
            np.testing.assert_allclose(other.data, parameter.data, 1e-12, 1e-12)


@pytest.mark.parametrize("l1", [0.0, 0.01])
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize(("name", "options"), RULES, ids=IDS)
def test_half_type_parameters_are_float32_steps_rounded(
    name: str, options: dict[str, Any], half: str, l1: float
) -> None:
    """With gradients so small that their squares vanish in float16, the step is still the one of float32."""
    dtype = np.dtype(pytest.importorskip("ml_dtypes").bfloat16) if half == "bfloat16" else np.dtype(half)
    rng = np.random.default_rng(9)
    start = rng.standard_normal((4, 3)).astype(dtype)
    ours, exact = nn.Parameter(start.copy()), nn.Parameter(start.astype(np.float32))
    options = {"l1": l1, **options}
    rules = [getattr(optim, name)([parameter], **options) for parameter in (ours, exact)]
    for kind in (np.dtype(np.float32), dtype):  # layers give gradients of float32
        before = exact.data.copy()
        ours.grad = (1e-5 * rng.standard_normal(start.shape).astype(np.float32)).astype(kind)
        exact.grad = ours.grad.astype(np.float32)
        for rule in rules:
            rule.step()
        moved = np.abs(exact.data - before).max()
        step = 2.0**-7 if half == "bfloat16" else 2.0**-10
        np.testing.assert_allclose(ours.data.astype(np.float32), exact.data, 2 * step, 0.05 * moved)
        assert ours.dtype == dtype
        exact.data[...] = ours.data.astype(np.float32)
    rules[0].load_state_dict(rules[0].state_dict())
    rules[0].step()


def test_groups_have_their_own_settings() -> None:
    rng = np.random.default_rng(5)
    first, second, _ = parameters(rng)
    before = first.data.copy(), second.data.copy()
    rule = optim.SGD([{"params": [first], "lr": 0.5}, {"params": second}], lr=0.25)
    draw_gradients([first, second], rng)
    rule.step()
    np.testing.assert_allclose(first.data, before[0] - 0.5 * first.grad)
    np.testing.assert_allclose(second.data, before[1] - 0.25 * second.grad)
    rule.zero_grad()
    assert first.grad is None and second.grad is None


def test_gamma_beta_and_biases_are_spared_the_decay() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.SwitchableNorm2d(4),
        nn.Flatten(),
        nn.weight_norm(nn.Linear(16, 6)),
        nn.LayerNorm((2, 3)),
    )
    decayed, rest = optim.decay_groups(model, 0.1, l1=0.01)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [names[id(p)] for p in decayed["params"]] == ["0.weight", "4.weight_v"]
    assert len(decayed["params"]) + len(rest["params"]) == len(names)
    rule = optim.AdamW([decayed, rest])
    assert [(g["weight_decay"], g["l1"]) for g in rule.param_groups] == [(0.1, 0.01), (0.0, 0.0)]


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, float("inf")])
@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_agrees_with_torch(max_norm: float, norm_type: float) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(6)
    ours = parameters(rng)
    draw_gradients(ours, rng)
    ours.append(nn.Parameter(np.ones(3)))
    theirs = [torch.nn.Parameter(torch.tensor(p.data)) for p in ours]
    for parameter, their in zip(ours, theirs, strict=True):
        their.grad = None if parameter.grad is None else torch.tensor(parameter.grad)
    norm = optim.clip_grad_norm(ours, max_norm, norm_type)
    assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)), rel=1e-12)
    for parameter, their in zip(ours[:-1], theirs, strict=False):
        np.testing.assert_allclose(parameter.grad, their.grad.numpy(), 1e-12)
    optim.clip_grad_value(ours, 0.01)
    torch.nn.utils.clip_grad_value_(theirs, 0.01)
    for parameter, their in zip(ours[:-1], theirs, strict=False):
        np.testing.assert_allclose(parameter.grad, their.grad.numpy(), 1e-12)


def test_clipping_does_not_overflow_and_shows_what_is_not_finite() -> None:
    parameter = nn.Parameter(np.ones(4, np.float32))
    parameter.grad = np.full(4, 1e30, np.float32)
    assert optim.clip_grad_norm(parameter, 1.0) == pytest.approx(2e30, rel=1e-6)
    np.testing.assert_allclose(parameter.grad, 0.5, 1e-6)
    parameter.grad = np.array([1, np.nan, 1, 1], np.float32)
    assert np.isnan(optim.clip_grad_norm(parameter, 1.0))
    assert np.isnan(parameter.grad).all()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda p: optim.SGD([]), ValueError, "empty"),
        (lambda p: optim.SGD([p.data]), TypeError, "expected parameters"),
        (lambda p: optim.SGD([p, p]), ValueError, "given twice"),
        (lambda p: optim.SGD([{"params": [p], "beta": 1}]), ValueError, "beta"),
        (lambda p: optim.SGD([{"lr": 1}]), TypeError, "'params'"),
        (lambda p: optim.SGD([p], lr=-1), ValueError, "lr"),
        (lambda p: optim.SGD([p], lr=float("nan")), ValueError, "lr"),
        (lambda p: optim.SGD([p], momentum=1.0), ValueError, "momentum"),
        (lambda p: optim.SGD([p], momentum=-0.1), ValueError, r"momentum must be in \[0, 1\), got -0.1"),
        (lambda p: optim.SGD([p], momentum=float("nan")), ValueError, "momentum"),
        (
            lambda p: optim.SGD([p], momentum=0.9, dampening=-0.5),
            ValueError,
            r"dampening must be in \[0, 1\], got -0.5",
        ),
        (lambda p: optim.SGD([p], lr=float("inf")), ValueError, "lr must be finite and at least 0, got inf"),
        (lambda p: optim.SGD([{"params": [p], "initial_lr": -1.0}]), ValueError, "initial_lr"),
        (
            lambda p: optim.SGD([p], momentum=0.9, dampening=0.1, nesterov=True),
            ValueError,
            "nesterov.* got 0.9 and 0.1",
        ),
        (lambda p: optim.RMSprop([p], momentum=1.5), ValueError, "RMSprop: momentum"),
        (lambda p: optim.RMSprop([p], alpha=float("nan")), ValueError, "alpha"),
        (lambda p: optim.Adam([p], betas=0.9), ValueError, "betas must be two numbers in .* got 0.9"),
        (lambda p: optim.Adam([p], betas=(0.9, 0.99, 0.999)), ValueError, "betas"),
        (lambda p: optim.AdamW([p], betas=(-0.1, 0.999)), ValueError, "AdamW: betas"),
        (lambda p: optim.SGD([p], nesterov=True), ValueError, "nesterov"),
        (lambda p: optim.SGD([p], weight_decay=-1), ValueError, "weight_decay"),
        (lambda p: optim.SGD([p], l1=-1), ValueError, "l1"),
        (lambda p: optim.RMSprop([p], alpha=1.0), ValueError, "alpha"),
        (lambda p: optim.Adam([p], betas=(0.9, 1.0)), ValueError, "betas"),
        (lambda p: optim.Adam([p], eps=-1), ValueError, "eps"),
        (lambda p: optim.clip_grad_norm(p, -1), ValueError, "max_norm"),
        (lambda p: optim.clip_grad_norm(p, 1, 0), ValueError, "norm_type"),
        (lambda p: optim.clip_grad_value(p, -1), ValueError, "clip_value"),
    ],
)
def test_wrong_settings_are_named(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make(nn.Parameter(np.ones(3)))


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    rng = np.random.default_rng(7)
    params = parameters(rng)
    rule = optim.Adam(params, lr=0.5)
    draw_gradients(params, rng)
    rule.step()
    before = rule.state_dict()
    wrong = rule.state_dict()
    wrong["state"][1]["exp_avg"] = np.ones(3)
    fewer = {"state": {}, "param_groups": [{"params": [0, 1], "lr": 1.0}]}
    bad_setting = rule.state_dict()
    bad_setting["param_groups"][0]["lr"] = -1.0
    for state, words in ((wrong, "exp_avg of parameter 1"), (fewer, "groups of"), (bad_setting, "lr")):
        with pytest.raises(ValueError, match=words):
            rule.load_state_dict(state)
    after = rule.state_dict()
    assert after["param_groups"] == before["param_groups"]
    np.testing.assert_array_equal(after["state"][1]["exp_avg"], before["state"][1]["exp_avg"])


def test_training_lowers_the_loss() -> None:
    rng = np.random.default_rng(8)
    x = rng.standard_normal((64, 4)).astype(np.float32)
    labels = (x[:, 0] * x[:, 1] > 0).astype(np.int64)
    for name in ("SGD", "RMSprop", "Adam", "AdamW"):
        nn.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 32, bias=False), nn.BatchNorm1d(32, activation="relu"), nn.Linear(32, 2))
        loss = nn.CrossEntropyLoss()
        rule = getattr(optim, name)(model.parameters(), lr=0.3 if name == "SGD" else 0.02)
        values = []
        for _ in range(60):
            values.append(float(loss(model(x), labels)))
            rule.zero_grad()
            model.backward(loss.backward())
            rule.step()
        assert values[-1] < 0.3 * values[0], name


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("norm_type", [1.0, 2.0, float("inf")])
def test_clipping_sees_a_nan_in_any_gradient(norm_type: float, order: tuple[int, int]) -> None:
    params = [nn.Parameter(np.zeros(2)), nn.Parameter(np.zeros(1))]
    params[0].grad, params[1].grad = np.array([3.0, 4.0]), np.array([np.nan])
    assert np.isnan(optim.clip_grad_norm([params[i] for i in order], 1.0, norm_type))


@pytest.mark.parametrize(("saved", "loading"), [("SGD", "Adam"), ("Adam", "SGD"), ("RMSprop", "Adam")])
def test_the_state_of_another_optimizer_is_refused(saved: str, loading: str) -> None:
    def stepped(name: str) -> Any:
        rng = np.random.default_rng(0)
        params = parameters(rng)
        rule = getattr(optim, name)(params, lr=0.1, **({"momentum": 0.9} if name == "SGD" else {}))
        draw_gradients(params, rng)
        rule.step()
        return rule

    state, rule = stepped(saved).state_dict(), stepped(loading)
    before = copy.deepcopy(rule.state_dict())
    with pytest.raises(ValueError, match="nothing was changed"):
        rule.load_state_dict(state)
    with pytest.raises(ValueError, match="nothing was changed"):
        rule.load_state_dict({})
    assert str(rule.state_dict()) == str(before)


def test_a_group_added_under_a_schedule_follows_it() -> None:
    rng = np.random.default_rng(0)
    params = parameters(rng)
    rule = optim.SGD(params[:1], lr=0.1)
    schedule = optim.ExponentialLR(rule, 0.5)
    rule.add_param_group({"params": params[1:], "lr": 0.4})
    schedule.step()
    assert [group["lr"] for group in rule.param_groups] == pytest.approx([0.05, 0.2])
