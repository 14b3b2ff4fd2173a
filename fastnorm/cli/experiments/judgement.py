"""Experiments judged on data that training has not seen: batch size, regularising noise, statistics for evaluation."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np

from fastnorm import nn
from fastnorm.cli import models
from fastnorm.cli.common import need, plain_log
from fastnorm.cli.experiments.lab import COLOURS, LABELS, Lab, Result, mean, percent
from fastnorm.cli.training import Settings, Training

__all__ = ["batch_size", "noise", "statistics"]


def batch_size(lab: Lab) -> Result:
    """Test error against the batch size from 2 to 128, for batch, group, layer and instance norm"""
    plt = need("matplotlib.pyplot")
    sizes = lab.choose((2, 4, 8, 16, 32, 64, 128), (4, 16))
    # A channel's mean is over samples and pixels in the one network, over the samples alone in the other.
    kinds = {"convolutional": ("batch", "group", "layer", "instance"), "fully connected": ("batch", "group", "layer")}
    rows: list[dict[str, Any]] = []
    errors: dict[tuple[str, str], dict[int, list[float]]] = {}
    cases = [(k, n, b, s) for k, norms in kinds.items() for n in norms for b in sizes for s in lab.seeds(2)]
    for kind, norm, size, seed in lab.each(cases):
        image = kind == "convolutional"
        data = (lab.images if image else lab.vectors).head(lab.choose(500, 96))
        # The rate goes with the root of the batch size, as its noise does, and large batches get more epochs: with the
        # same few they would be judged by how few steps they took.
        epochs = lab.choose(max(8, math.ceil(150 * size / len(data.x_train))), 1)
        settings = Settings(
            norm=norm,
            optimizer="sgd",
            lr=0.02 * math.sqrt(size / 8),
            epochs=epochs,
            width=8 if image else 128,
            layers=4 if image else 3,
            batch_size=size,
            seed=seed,
        )
        training = lab.train(settings, data)
        error = 1 - training.test()[1]
        errors.setdefault((kind, norm), {b: [] for b in sizes})[size].append(error)
        loss = training.curves["loss"][-1]
        row = {"network": kind, "norm": norm, "batch_size": size, "seed": seed}
        rows.append({**row, "test_error": error, "training_loss": loss})

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    for panel, (kind, norms) in zip(panels, kinds.items(), strict=True):
        for norm in norms:
            y = 100 * np.array([errors[kind, norm][size] for size in sizes])
            panel.plot(sizes, y.mean(axis=1), marker="o", markersize=4, color=COLOURS[norm], label=LABELS[norm])
            panel.fill_between(sizes, y.min(axis=1), y.max(axis=1), color=COLOURS[norm], alpha=0.15, linewidth=0)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.set_xlabel("batch size (log scale)")
        panel.set_title(f"{kind} network", fontsize=10)
        panel.grid(color="0.92")
    plain_log(panels[0].yaxis)
    panels[0].set_ylabel("test error, % (log scale)")
    figure.tight_layout()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, bbox_to_anchor=(0.5, 1.0))

    small, large = sizes[0], 32 if 32 in sizes else sizes[-1]
    lines = []
    change = {}
    for kind, norms in kinds.items():
        told = []
        for norm in norms:
            by_size = errors[kind, norm]
            change[kind, norm] = 100 * (mean(by_size[small]) - mean(by_size[large]))
            told.append(f"{LABELS[norm]} {percent(mean(by_size[small]))} against {percent(mean(by_size[large]))}")
        lines.append(f"{kind.capitalize()}, test error at a batch of {small} against {large}: {', '.join(told)}.")
    image, vector = kinds
    lines.append(
        f"From {large} to {small} samples the error changes for batch norm by {change[image, 'batch']:+.1f} points "
        f"where its mean is over samples and pixels and by {change[vector, 'batch']:+.1f} where it is over samples "
        f"alone; for group norm, which looks at one sample at a time, by {change[image, 'group']:+.1f} and "
        f"{change[vector, 'group']:+.1f}."
    )
    return Result(rows, lines, figure)


def noise(lab: Lab) -> Result:
    """Batch norm's regularising noise against dropout, on few training samples"""
    plt = need("matplotlib.pyplot")
    samples, epochs = lab.choose(200, 64), lab.choose(60, 2)
    data = lab.vectors.head(samples)
    # name: norm, dropout, batch size
    kinds: dict[str, tuple[str, float, int]] = {
        "no norm": ("none", 0.0, 10),
        "dropout 0.25": ("none", 0.25, 10),
        "dropout 0.5": ("none", 0.5, 10),
        "batch norm,\nbatch of 10": ("batch", 0.0, 10),
        "batch norm,\nbatch of 100": ("batch", 0.0, 100),
        "batch norm and\ndropout 0.25": ("batch", 0.25, 10),
    }
    rows: list[dict[str, Any]] = []
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in kinds}
    for name, seed in lab.each((n, s) for n in kinds for s in lab.seeds(6)):
        norm, dropout, size = kinds[name]

        def build(norm: str = norm, dropout: float = dropout) -> Any:
            return models.perceptron(norm, 64, 10, [256, 256], dropout=dropout)

        settings = Settings(
            norm=norm,
            optimizer="adam",
            lr=1e-3,
            weight_decay=0.0,
            epochs=epochs,
            batch_size=size,
            schedule="cosine",
            seed=seed,
        )
        training = lab.train(settings, data, build)
        train_loss, train_accuracy = training.evaluate(data.x_train, data.y_train)
        test_loss, test_accuracy = training.test()
        found[name].append((1 - test_accuracy, test_loss, train_loss))
        rows.append(
            {
                "kind": name.replace("\n", " "),
                "norm": norm,
                "dropout": dropout,
                "batch_size": size,
                "seed": seed,
                "test_error": 1 - test_accuracy,
                "training_error": 1 - train_accuracy,
                "test_loss": test_loss,
                "training_loss": train_loss,
            }
        )

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8))
    rng = np.random.default_rng(0)
    colours = [
        COLOURS[norm] if not dropout else ("tab:green" if norm == "none" else "tab:purple")
        for norm, dropout, _ in kinds.values()
    ]
    for panel, column, label in ((panels[0], 0, "test error, %"), (panels[1], 1, "test loss, nats")):
        for position, (name, colour) in enumerate(zip(kinds, colours, strict=True)):
            values = np.array([run[column] for run in found[name]]) * (100 if column == 0 else 1)
            panel.scatter(
                values, position + rng.uniform(-0.12, 0.12, len(values)), s=14, color=colour, alpha=0.6, linewidths=0
            )
            panel.plot([values.mean()] * 2, [position - 0.3, position + 0.3], color=colour, linewidth=2.5)
        panel.set_yticks(range(len(kinds)), list(kinds) if column == 0 else [""] * len(kinds))
        panel.invert_yaxis()
        panel.set_xlabel(f"{label} (dots: seeds, bar: mean)")
        panel.grid(axis="x", color="0.92")
        panel.set_axisbelow(True)
    figure.tight_layout()

    averages = {name: tuple(mean(run[i] for run in runs) for i in range(3)) for name, runs in found.items()}
    flat = {name.replace("\n", " "): value for name, value in averages.items()}
    by_error, by_loss = (sorted(flat, key=lambda name: flat[name][column]) for column in (0, 1))
    plain = flat["no norm"]
    dropped = min((n for n in flat if n.startswith("dropout")), key=lambda n: flat[n][0])
    gain = {name: 100 * (value[0] - plain[0]) for name, value in flat.items()}
    lines = [
        "Mean test error, lowest first: " + "; ".join(f"{name} {percent(flat[name][0])}" for name in by_error) + ".",
        f"Against no norm, dropout changes the test error by at best {gain[dropped]:+.1f} points ({dropped}), "
        f"batch norm by {gain['batch norm, batch of 10']:+.1f} (batch of 10) and "
        f"{gain['batch norm, batch of 100']:+.1f} (batch of 100).",
        "Mean test loss, lowest first: " + "; ".join(f"{name} {flat[name][1]:.3f}" for name in by_loss) + ".",
    ]
    return Result(rows, lines, figure)


def statistics(lab: Lab) -> Result:
    """Evaluation with running, "paper" and "exact" statistics, epoch by epoch"""
    plt = need("matplotlib.pyplot")
    epochs, sizes = lab.choose(10, 2), (8, 64)
    kinds = {"running": "tab:blue", "paper": "tab:orange", "exact": "tab:green"}
    rows: list[dict[str, Any]] = []
    found: dict[tuple[int, str], list[list[float]]] = {}
    accuracies: dict[tuple[int, str], list[list[float]]] = {}
    data = lab.images.head(lab.choose(600, 96))
    for size, seed in lab.each((b, s) for b in sizes for s in lab.seeds(3)):
        losses: dict[str, list[float]] = {kind: [] for kind in kinds}
        accuracy: dict[str, list[float]] = {kind: [] for kind in kinds}
        batches = [data.x_train[i : i + size] for i in range(0, len(data.x_train) - size + 1, size)]

        def look(
            training: Training,
            losses: dict[str, list[float]] = losses,
            accuracy: dict[str, list[float]] = accuracy,
            batches: list[Any] = batches,
            size: int = size,
            seed: int = seed,
        ) -> None:
            if training.epoch == 0:
                return
            original = training.model
            for kind in kinds:
                if kind != "running":
                    training.model = copy.deepcopy(original)
                    nn.recalibrate(training.model, batches, how=kind)
                loss, share = training.test()
                training.model = original
                losses[kind].append(loss)
                accuracy[kind].append(share)
                rows.append(
                    {
                        "batch_size": size,
                        "seed": seed,
                        "epoch": training.epoch,
                        "statistics": kind,
                        "test_loss": loss,
                        "test_accuracy": share,
                    }
                )

        settings = Settings(
            optimizer="sgd",
            lr=0.1 * size / 64,
            epochs=epochs,
            width=16,
            batch_size=size,
            schedule="constant",
            seed=seed,
            shift=0,
        )
        lab.train(settings, data, None, look)
        for kind in kinds:
            found.setdefault((size, kind), []).append(losses[kind])
            accuracies.setdefault((size, kind), []).append(accuracy[kind])

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for panel, size in zip(panels, sizes, strict=True):
        for kind, colour in kinds.items():
            y = np.array(found[size, kind])
            x = range(1, y.shape[1] + 1)
            style = "--" if kind == "exact" else "-"
            panel.plot(
                x, np.exp(np.log(y).mean(axis=0)), color=colour, linestyle=style, label=kind, marker="o", markersize=3
            )
            panel.fill_between(x, y.min(axis=0), y.max(axis=0), color=colour, alpha=0.12, linewidth=0)
        panel.set_title(f"trained with batches of {size}", fontsize=10)
        panel.set_xlabel("epoch")
        panel.set_yscale("log")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(color="0.92")
    plain_log(panels[0].yaxis)
    panels[0].set_ylabel("test loss, nats (log scale)")
    panels[1].legend(frameon=False, title="statistics")
    figure.tight_layout()

    lines = []
    for size in sizes:
        told = ", ".join(
            f"{kind} {np.mean(found[size, kind]):.3f} ({percent(float(np.mean(accuracies[size, kind])))})"
            for kind in kinds
        )
        lines.append(f"Batches of {size}, mean test loss (accuracy) over all epochs: {told}.")
    gaps = {
        size: float(np.max(np.abs(np.array(found[size, "paper"]) / np.array(found[size, "exact"]) - 1)))
        for size in sizes
    }
    worst = {size: float(np.max(np.array(found[size, "running"]) / np.array(found[size, "exact"]))) for size in sizes}
    lines.append(
        "Running statistics cost at worst "
        + ", ".join(f"{worst[size]:.2f} times the exact ones' loss (batches of {size})" for size in sizes)
        + "; paper and exact differ by at most "
        + " and ".join(percent(gaps[size]) for size in sizes)
        + "."
    )
    return Result(rows, lines, figure)
