"""Experiments on training itself: how fast it goes, and at which rates, weights and activations it goes at all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastnorm.cli import models
from fastnorm.cli.common import need, plain_log
from fastnorm.cli.experiments.lab import COLOURS, LABELS, Lab, Result, he_weights, mean, percent, steps_of
from fastnorm.cli.training import Settings

__all__ = ["init_scale", "learning_rate", "saturation", "speed", "weight_norm"]


def speed(lab: Lab) -> Result:
    """Training speed with and without batch norm, at a small and at a large learning rate"""
    plt = need("matplotlib.pyplot")
    epochs, rates = lab.choose(15, 2), (0.01, 0.1)
    rows, curves = [], {}
    for norm, rate, seed in lab.each((n, r, s) for n in ("none", "batch") for r in rates for s in lab.seeds(3)):
        settings = Settings(
            norm=norm, optimizer="sgd", lr=rate, epochs=epochs, width=16, schedule="constant", seed=seed
        )
        training = lab.train(settings, lab.images, lab.network(settings, lab.images))
        for epoch in range(len(training.curves["loss"])):
            row = {name: curve[epoch] for name, curve in training.curves.items()}
            rows.append({"norm": norm, "lr": rate, "seed": seed, "epoch": epoch + 1, **row})
        curves.setdefault((norm, rate), []).append(training.curves)

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    for (norm, rate), runs in curves.items():
        length = min(len(c["loss"]) for c in runs)
        style: dict[str, Any] = {"color": COLOURS[norm], "linestyle": "-" if rate == rates[1] else "--"}
        x = range(1, length + 1)
        left.plot(
            x, np.mean([c["loss"][:length] for c in runs], axis=0), label=f"{LABELS[norm]}, rate {rate:g}", **style
        )
        right.plot(x, 100 * np.mean([c["held_out_accuracy"][:length] for c in runs], axis=0), **style)
    left.set_yscale("log")
    plain_log(left.yaxis)
    left.set_ylabel("training loss, nats")
    right.set_ylabel("test accuracy, %")
    for panel in (left, right):
        panel.set_xlabel("epoch")
        panel.grid(color="0.92")
    figure.tight_layout()
    figure.legend(
        *left.get_legend_handles_labels(), loc="lower center", ncols=4, frameon=False, bbox_to_anchor=(0.5, 1.0)
    )

    def until(norm: str, rate: float) -> str:
        reached = mean(steps_of(c["held_out_accuracy"], 0.95) for c in curves[norm, rate])
        return f"after {reached:.1f} epochs" if math.isfinite(reached) else f"not in all runs within {epochs} epochs"

    lines = [
        f"95 % test accuracy at rate {rate:g}: with batch norm {until('batch', rate)}, without {until('none', rate)}."
        for rate in rates
    ]
    last = {key: mean(c["loss"][-1] for c in runs) for key, runs in curves.items()}
    low, high = sorted(last, key=lambda key: last[key])[:: len(last) - 1]
    lines.append(
        f"Training loss after {epochs} epochs: lowest {last[low]:.2g} ({LABELS[low[0]]}, rate {low[1]:g}), "
        f"highest {last[high]:.2g} ({LABELS[high[0]]}, rate {high[1]:g})."
    )
    return Result(rows, lines, figure)


def learning_rate(lab: Lab) -> Result:
    """The largest learning rate that still trains, per norm"""
    rates = lab.choose([float(r) for r in np.geomspace(0.003, 100, 14)], [0.01, 1.0])
    rows, accuracy = sweep(lab, "lr", rates, ("none", "weight", "layer", "batch"))
    figure = plot_sweep(accuracy, rates, "learning rate")
    lines = []
    largest = {}
    for norm, values in accuracy.items():
        good = [rate for rate, runs in values.items() if min(runs) > TRAINED]
        largest[norm] = max(good, default=math.nan)
        lines.append(f"{LABELS[norm]} {max(good):.2g}" if good else f"{LABELS[norm]} none of those tried")
    first = f"Largest rate at which every run passes {percent(TRAINED)} of the training data: {', '.join(lines)}."
    factor = largest["batch"] / largest["none"]
    second = (
        f"Batch norm's largest rate is {factor:.3g} times the one without a norm."
        if math.isfinite(factor)
        else "One of them trains at no rate that was tried, so there is no factor."
    )
    widths = {n: sum(min(runs) > TRAINED for runs in v.values()) for n, v in accuracy.items()}
    third = (
        "Rates that train, of "
        + f"{len(rates)} tried: "
        + ", ".join(f"{LABELS[n]} {w}" for n, w in widths.items())
        + "."
    )
    return Result(rows, [first, second, third], figure)


def init_scale(lab: Lab) -> Result:
    """Sensitivity to the scale of the initial weights, per norm"""
    scales = lab.choose([float(s) for s in np.geomspace(0.01, 100, 13)], [0.1, 1.0])
    rows, accuracy = sweep(lab, "scale", scales, ("none", "weight", "layer", "batch"))
    figure = plot_sweep(accuracy, scales, "initial weights, multiple of He's scale")
    ranges, widths = [], {}
    for norm, values in accuracy.items():
        good = [scale for scale, runs in values.items() if min(runs) > TRAINED]
        widths[norm] = len(good)
        span = f"{min(good):.2g} to {max(good):.2g}" if len(good) > 1 else f"{good[0]:.2g} alone" if good else "none"
        ranges.append(f"{LABELS[norm]} {span}")
    best, worst = max(widths, key=lambda n: widths[n]), min(widths, key=lambda n: widths[n])
    usual = min(scales, key=lambda s: abs(math.log(s)))
    lines = [
        f"Scales at which every run passes {percent(TRAINED)} of the training data: {'; '.join(ranges)}.",
        f"Most tolerant: {LABELS[best]} ({widths[best]} of {len(scales)} scales); "
        f"least: {LABELS[worst]} ({widths[worst]}).",
        "At He's scale: " + ", ".join(f"{LABELS[n]} {percent(mean(v[usual]))}" for n, v in accuracy.items()) + ".",
    ]
    return Result(rows, lines, figure)


TRAINED = 0.9


def sweep(lab: Lab, what: str, values: list[float], norms: tuple[str, ...]) -> tuple[list[dict[str, Any]], Any]:
    """Training accuracy of five hidden layers of 64 units after a few epochs of plain SGD, for each norm and value."""
    rows = []
    accuracy: dict[str, dict[float, list[float]]] = {norm: {value: [] for value in values} for norm in norms}
    data = lab.vectors
    for norm, value, seed in lab.each((n, v, s) for n in norms for v in values for s in lab.seeds(2)):
        rate = value if what == "lr" else 0.1

        def build(norm: str = norm, scale: float = value if what == "scale" else 1.0) -> Any:
            return he_weights(models.perceptron(norm, 64, 10, [64] * 5), scale)

        settings = Settings(
            norm=norm,
            optimizer="sgd",
            momentum=0.0,
            weight_decay=0.0,
            lr=rate,
            epochs=lab.choose(12, 1),
            schedule="constant",
            seed=seed,
        )
        training = lab.train(settings, data, build)
        got = 0.0 if training.diverged else training.evaluate(data.x_train, data.y_train)[1]
        accuracy[norm][value].append(got)
        rows.append({"norm": norm, what: value, "seed": seed, "training_accuracy": got, "diverged": training.diverged})
    return rows, accuracy


def plot_sweep(accuracy: Any, values: list[float], label: str) -> Any:
    plt = need("matplotlib.pyplot")
    figure, panel = plt.subplots(figsize=(7, 3.8))
    for norm, by_value in accuracy.items():
        y = 100 * np.array([by_value[value] for value in values])
        panel.plot(values, y.mean(axis=1), marker="o", markersize=4, color=COLOURS[norm], label=LABELS[norm])
        panel.fill_between(values, y.min(axis=1), y.max(axis=1), color=COLOURS[norm], alpha=0.15, linewidth=0)
    panel.axhline(10, color="0.6", linewidth=1, linestyle=":")
    # Below its line and to the left: runs that fail to learn lie on it, those that diverge far to the right.
    panel.annotate(
        "chance", (values[0], 10), xytext=(0, -4), textcoords="offset points", va="top", fontsize=8, color="0.4"
    )
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter("{x:g}")
    panel.set_xlabel(f"{label} (log scale)")
    panel.set_ylabel("training accuracy, % (0: diverged)")
    panel.grid(color="0.92")
    figure.tight_layout()
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False, bbox_to_anchor=(0.5, 1.0))
    return figure


def saturation(lab: Lab) -> Result:
    """Sigmoid and tanh networks with and without batch norm"""
    plt = need("matplotlib.pyplot")
    epochs, rows, curves = lab.choose(30, 2), [], {}
    kinds = [(a, n) for a in ("sigmoid", "tanh") for n in ("none", "batch")]
    for (activation, norm), seed in lab.each((kind, s) for kind in kinds for s in lab.seeds(3)):

        def build(norm: str = norm, activation: str = activation) -> Any:
            return models.perceptron(norm, 64, 10, [64] * 4, activation=activation)

        settings = Settings(norm=norm, optimizer="sgd", lr=0.05, epochs=epochs, schedule="constant", seed=seed)
        training = lab.train(settings, lab.vectors, build)
        for epoch in range(len(training.curves["loss"])):
            row = {name: curve[epoch] for name, curve in training.curves.items()}
            rows.append({"activation": activation, "norm": norm, "seed": seed, "epoch": epoch + 1, **row})
        curves.setdefault((activation, norm), []).append(training.curves)

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    lines = []
    for activation, panel in zip(("sigmoid", "tanh"), panels, strict=True):
        reached = []
        for norm in ("none", "batch"):
            runs = curves[activation, norm]
            y = 100 * np.array([c["held_out_accuracy"] for c in runs])
            x = range(1, y.shape[1] + 1)
            panel.plot(x, y.mean(axis=0), color=COLOURS[norm], label=LABELS[norm])
            panel.fill_between(x, y.min(axis=0), y.max(axis=0), color=COLOURS[norm], alpha=0.2, linewidth=0)
            first = mean(steps_of(c["held_out_accuracy"], 0.9) for c in runs)
            when = f"90 % after {first:.1f} epochs" if math.isfinite(first) else "90 % not reached by all runs"
            reached.append(f"{LABELS[norm]} {y[:, -1].mean():.1f} % ({when})")
        panel.set_title(activation, fontsize=11)
        panel.set_xlabel("epoch")
        panel.grid(color="0.92")
        lines.append(f"{activation}, test accuracy after {epochs} epochs: {', '.join(reached)}.")
    panels[0].set_ylabel("test accuracy, %")
    panels[1].legend(frameon=False, loc="lower right")
    figure.tight_layout()
    gain = {
        a: mean(c["held_out_accuracy"][0] for c in curves[a, "batch"])
        - mean(c["held_out_accuracy"][0] for c in curves[a, "none"])
        for a in ("sigmoid", "tanh")
    }
    lines.append(
        "After the first epoch batch norm is ahead by "
        + " and ".join(f"{100 * g:.1f} points ({a})" for a, g in gain.items())
        + "."
    )
    return Result(rows, lines, figure)


def weight_norm(lab: Lab) -> Result:
    """Weight norm against batch norm and none, each at its best learning rate"""
    plt = need("matplotlib.pyplot")
    epochs, rates = lab.choose(12, 1), lab.choose((0.003, 0.01, 0.03, 0.1, 0.3), (0.03,))
    norms, rows, curves = ("none", "weight", "batch"), [], {}
    for norm, rate, seed in lab.each((n, r, s) for n in norms for r in rates for s in lab.seeds(2)):
        settings = Settings(
            norm=norm,
            optimizer="sgd",
            lr=rate,
            epochs=epochs,
            width=16,
            schedule="constant",
            seed=seed,
            weight_decay=0.0,
        )
        training = lab.train(settings, lab.images, lab.network(settings, lab.images))
        for epoch in range(len(training.curves["loss"])):
            row = {name: curve[epoch] for name, curve in training.curves.items()}
            rows.append({"norm": norm, "lr": rate, "seed": seed, "epoch": epoch + 1, **row})
        curves.setdefault((norm, rate), []).append(training)

    def last(norm: str, rate: float) -> float:
        return mean(math.inf if t.diverged else t.curves["loss"][-1] for t in curves[norm, rate])

    best = {norm: min(rates, key=lambda rate: last(norm, rate)) for norm in norms}
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    tests = {}
    for norm in norms:
        runs = [t.curves for t in curves[norm, best[norm]]]
        x = range(1, len(runs[0]["loss"]) + 1)
        left.plot(x, np.mean([c["loss"] for c in runs], axis=0), color=COLOURS[norm])
        accuracy = np.mean([c["held_out_accuracy"] for c in runs], axis=0)
        right.plot(x, 100 * accuracy, color=COLOURS[norm], label=f"{LABELS[norm]}, rate {best[norm]:g}")
        tests[norm] = float(accuracy[-1])
    left.set_yscale("log")
    plain_log(left.yaxis)
    left.set_ylabel("training loss, nats")
    right.set_ylabel("test accuracy, %")
    right.legend(frameon=False, loc="lower right")
    for panel in (left, right):
        panel.set_xlabel("epoch")
        panel.grid(color="0.92")
    figure.tight_layout()
    order = sorted(norms, key=lambda norm: last(norm, best[norm]))
    lines = [
        f"Best rate of {', '.join(f'{r:g}' for r in rates)}: "
        + ", ".join(f"{LABELS[n]} {best[n]:g}" for n in norms)
        + ".",
        f"Training loss after {epochs} epochs, lowest first: "
        + ", ".join(f"{LABELS[n]} {last(n, best[n]):.2g}" for n in order)
        + ".",
        "Test accuracy then: " + ", ".join(f"{LABELS[n]} {percent(tests[n])}" for n in norms) + ".",
    ]
    return Result(rows, lines, figure)
