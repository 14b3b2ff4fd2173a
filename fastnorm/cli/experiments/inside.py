"""Experiments that look inside: gradients on their way down, distributions over time, what switchable norm chooses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastnorm import nn
from fastnorm.cli import models
from fastnorm.cli.common import need
from fastnorm.cli.experiments.lab import COLOURS, LABELS, Lab, Result, he_weights, mean, percent, start
from fastnorm.cli.training import Settings, Training

__all__ = ["distributions", "gradients", "switchable"]


def gradients(lab: Lab) -> Result:
    """Norms of the gradient through 20 layers at the start, per norm and scale of the weights"""
    plt = need("matplotlib.pyplot")
    depth, batch = 20, 128
    kinds = [("none", "PyTorch"), ("none", "He"), ("layer", "PyTorch"), ("batch", "PyTorch"), ("batch", "He")]
    rows, norms = [], {}
    for (norm, weights), seed in lab.each((kind, s) for kind in kinds for s in lab.seeds(5)):

        def build(norm: str = norm, weights: str = weights) -> Any:
            model = models.perceptron(norm, 64, 10, [64] * depth)
            return he_weights(model) if weights == "He" else model

        training = start(Settings(norm=norm, seed=seed), lab.vectors, build)
        x, y = lab.vectors.x_train[:batch], lab.vectors.y_train[:batch]
        training.criterion(training.model(x), y)
        gradient = training.criterion.backward()
        found = []
        for layer in reversed(list(training.model)):
            gradient = layer.backward(gradient)
            if isinstance(layer, nn.Linear):
                found.append(float(np.linalg.norm(gradient.astype(np.float64))))
        # The gradient at the input of each product, the first hidden layer's first.
        found = found[::-1]
        norms.setdefault((norm, weights), []).append(found)
        for layer_number, value in enumerate(found):
            rows.append(
                {"norm": norm, "weights": weights, "seed": seed, "layer": layer_number + 1, "gradient_norm": value}
            )

    figure, panel = plt.subplots(figsize=(7, 3.8))
    ratios = {}
    for (norm, weights), runs in norms.items():
        y = np.exp(np.mean(np.log(np.maximum(runs, 1e-300)), axis=0))
        style: dict[str, Any] = {"color": COLOURS[norm], "linestyle": "-" if weights == "PyTorch" else "--"}
        panel.plot(
            range(1, len(y) + 1), y, marker="o", markersize=3, label=f"{LABELS[norm]}, {weights} weights", **style
        )
        ratios[norm, weights] = float((y[0] / y[depth]) ** (1 / depth))
    panel.set_yscale("log")
    panel.set_xlabel("layer (1 is next to the input, 21 the classifier)")
    panel.set_ylabel("norm of the gradient at its input\n(log scale)")
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.grid(color="0.92")
    panel.legend(frameon=False, fontsize=8, loc="lower right")
    figure.tight_layout()

    def told(kind: tuple[str, str]) -> str:
        return f"{ratios[kind]:.2f} ({LABELS[kind[0]]}, {kind[1]} weights)"

    steady = min(ratios, key=lambda kind: abs(math.log(ratios[kind])))
    extreme = max(ratios, key=lambda kind: abs(math.log(ratios[kind])))
    word = "grows" if ratios["batch", "PyTorch"] > 1 else "shrinks"
    lines = [
        f"Factor by which a layer multiplies the gradient on its way down: {', '.join(told(kind) for kind in ratios)}.",
        f"Closest to 1: {told(steady)}; furthest: {told(extreme)}, over {depth} layers a factor of "
        f"{ratios[extreme] ** depth:.1e}.",
        f"With batch norm the gradient {word} downwards at the start, and the scale of the weights changes its factor "
        f"by {percent(abs(ratios['batch', 'He'] / ratios['batch', 'PyTorch'] - 1))}; without a norm by "
        f"{percent(abs(ratios['none', 'He'] / ratios['none', 'PyTorch'] - 1))}.",
    ]
    return Result(rows, lines, figure)


def distributions(lab: Lab) -> Result:
    """Distributions of the inputs of each layer's activation over time, with and without batch norm"""
    plt = need("matplotlib.pyplot")
    depth, epochs = 4, lab.choose(15, 2)
    levels = (5, 25, 50, 75, 95)
    rows: list[dict[str, Any]] = []
    bands: dict[str, list[Any]] = {"none": [], "batch": []}
    sample = lab.vectors.x_train[:512]
    for norm in lab.each(bands):

        def look(training: Training, norm: str = norm) -> None:
            """Percentiles of what enters each tanh, for the same samples each time, in training mode's statistics."""
            x, found = sample, []
            buffers = {name: array.copy() for name, array in training.model.named_buffers()}
            with nn.no_grad():
                for layer in training.model:
                    if isinstance(layer, nn.Tanh):
                        found.append(np.percentile(x, levels))
                    x = layer(x)
            for name, array in training.model.named_buffers():
                array[...] = buffers[name]
            bands[norm].append(found)
            for number, values in enumerate(found, 1):
                columns = {f"p{level}": float(v) for level, v in zip(levels, values, strict=True)}
                rows.append({"norm": norm, "epoch": training.epoch, "layer": number, **columns})

        def build(norm: str = norm) -> Any:
            return models.perceptron(norm, 64, 10, [64] * depth, activation="tanh")

        settings = Settings(norm=norm, optimizer="sgd", lr=0.1, epochs=epochs, schedule="constant", seed=lab.seed)
        lab.train(settings, lab.vectors, build, look)

    figure, panels = plt.subplots(2, depth, figsize=(9, 4.4), sharex=True, sharey=True)
    for line, norm in zip(panels, bands, strict=True):
        values = np.array(bands[norm])  # epoch, layer, percentile
        x = range(len(values))
        for number, panel in enumerate(line):
            colour = COLOURS[norm]
            low, lower, middle, upper, high = values[:, number].T
            panel.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0, label="middle 90 %")
            panel.fill_between(x, lower, upper, color=colour, alpha=0.35, linewidth=0, label="middle 50 %")
            panel.plot(x, middle, color=colour, label="median")
            panel.grid(color="0.92")
            panel.xaxis.get_major_locator().set_params(integer=True)
            if norm == "none":
                panel.set_title(f"layer {number + 1}", fontsize=10)
            else:
                panel.set_xlabel("epoch")
        line[0].set_ylabel(f"{LABELS[norm]}\ninput of the tanh")
    figure.align_ylabels()
    figure.tight_layout()
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False, bbox_to_anchor=(0.5, 1.0))

    def width(norm: str, epoch: int) -> list[float]:
        return [float(v[4] - v[0]) for v in bands[norm][epoch]]

    def moved(norm: str) -> float:
        values = np.array(bands[norm])
        return float(np.max(np.abs(np.diff(values[:, :, 2], axis=0))))

    widths = "; ".join(
        f"{LABELS[n]} " + ", ".join(f"{a:.1f} to {b:.1f}" for a, b in zip(width(n, 0), width(n, -1), strict=True))
        for n in bands
    )
    lines = [
        f"Width of the middle 90 % from the start to epoch {epochs}, layers 1 to {depth}: {widths}.",
        "Largest ratio of the widths of two layers at the start: "
        + ", ".join(f"{LABELS[n]} {max(width(n, 0)) / min(width(n, 0)):.1f}" for n in bands)
        + "; at the end: "
        + ", ".join(f"{LABELS[n]} {max(width(n, -1)) / min(width(n, -1)):.1f}" for n in bands)
        + ".",
        "Largest move of a layer's median from one epoch to the next: "
        + ", ".join(f"{LABELS[n]} {moved(n):.2f}" for n in bands)
        + ".",
    ]
    return Result(rows, lines, figure)


def switchable(lab: Lab) -> Result:
    """What switchable norm learns to use in each layer, at a small and a large batch"""
    plt = need("matplotlib.pyplot")
    parts, batches, epochs = ("instance", "layer", "batch"), (2, 64), lab.choose(12, 1)
    rows: list[dict[str, Any]] = []
    weights: dict[int, Any] = {}
    data = lab.images.head(lab.choose(700, 96))
    for batch in lab.each(batches):
        # Rates in proportion to the batch, as the sum of a small batch's noise demands.
        settings = Settings(
            norm="switchable",
            optimizer="sgd",
            lr=0.1 * batch / 64,
            epochs=epochs,
            width=16,
            batch_size=batch,
            seed=lab.seed,
        )
        training = lab.train(settings, data)
        layers = [layer for layer in training.model if isinstance(layer, nn.SwitchableNorm2d)]
        weights[batch] = [
            [_softmax(logits.data) for logits in (layer.mean_logits, layer.var_logits)] for layer in layers
        ]
        accuracy = training.test()[1]
        for number, pair in enumerate(weights[batch], 1):
            for statistic, values in zip(("mean", "variance"), pair, strict=True):
                shares = {part: float(v) for part, v in zip(parts, values, strict=True)}
                rows.append({"batch": batch, "layer": number, "of": statistic, **shares, "test_accuracy": accuracy})

    figure, panels = plt.subplots(1, 4, figsize=(9, 3.2), sharey=True)
    flat = [(batch, which) for batch in batches for which in (0, 1)]
    for panel, (batch, which) in zip(panels, flat, strict=True):
        values = np.array([pair[which] for pair in weights[batch]])
        x, bottom = np.arange(1, len(values) + 1), np.zeros(len(values))
        for part, column in zip(parts, values.T, strict=True):
            panel.bar(x, column, bottom=bottom, color=COLOURS[part], label=LABELS[part], width=0.8)
            bottom += column
        panel.set_title(f"{('mean', 'variance')[which]}, batch of {batch}", fontsize=10)
        panel.set_xlabel("norm layer")
        panel.set_xticks(x)
        panel.set_ylim(0, 1)
    panels[0].set_ylabel("weight (softmax)")
    figure.tight_layout()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False, bbox_to_anchor=(0.5, 1.0))

    lines = []
    for which, statistic in enumerate(("means", "variances")):
        told = []
        for batch in batches:
            average = np.mean([pair[which] for pair in weights[batch]], axis=0)
            shares = ", ".join(f"{part} {v:.2f}" for part, v in zip(parts, average, strict=True))
            told.append(f"batch of {batch}: {shares}")
        lines.append(
            f"Weights of the {statistic}, averaged over the layers: {'; '.join(told)} (1/3 each at the start)."
        )
    changes = [
        (abs(v - 1 / 3), batch, number, statistic, part, v)
        for batch in batches
        for number, pair in enumerate(weights[batch], 1)
        for statistic, values in zip(("mean", "variance"), pair, strict=True)
        for part, v in zip(parts, values, strict=True)
    ]
    _, batch, number, statistic, part, v = max(changes)
    shift = mean(change[0] for change in changes)
    lines.append(
        f"Furthest from 1/3: {v:.2f} for {part} in the {statistic} of layer {number} at a batch of {batch}; "
        f"on average a weight moves by {shift:.2f}."
    )
    return Result(rows, lines, figure)


def _softmax(logits: Any) -> Any:
    import fastnorm as fn

    return fn.softmax(logits.astype(np.float64), -1)
