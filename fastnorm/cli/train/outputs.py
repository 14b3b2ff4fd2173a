"""What a run leaves behind: the learning curves as a picture, the predictions as a file."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from fastnorm.cli.common import CommandError, atomic_path, draw, need, plain_log
from fastnorm.cli.training import Training

__all__ = ["plot_curves", "write_predictions"]


def plot_curves(path: Path, training: Training) -> None:
    """Loss and accuracy after each epoch, training beside held-out data."""
    need("matplotlib").use("Agg")
    plt = need("matplotlib.pyplot")
    curves = training.curves
    epochs = range(1, len(curves["loss"]) + 1)
    held_out = "validation" if training.validation else "test"
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    marker = "o" if len(curves["loss"]) < 30 else None
    left.plot(epochs, curves["loss"], label="training", marker=marker, markersize=3)
    left.plot(epochs, curves["held_out_loss"], label=held_out, marker=marker, markersize=3)
    left.set_ylabel("cross-entropy, nats")
    left.set_yscale("log")
    plain_log(left.yaxis)
    right.plot(epochs, [100 * a for a in curves["accuracy"]], label="training", marker=marker, markersize=3)
    right.plot(epochs, [100 * a for a in curves["held_out_accuracy"]], label=held_out, marker=marker, markersize=3)
    right.set_ylabel("accuracy, %")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="0.9")
        axes.legend(frameon=False)
    settings = training.settings
    figure.suptitle(
        f"{training.data.name}, norm {settings.norm}, {settings.optimizer}, lr {settings.lr:g}", fontsize=11
    )
    figure.tight_layout()
    draw(path, figure)
    plt.close(figure)


def write_predictions(path: Path, training: Training) -> None:
    """The test part, one row per sample: its index in the source, label, prediction, probability of each class."""
    import fastnorm as fn

    data = training.data
    with np.errstate(all="ignore"):
        probabilities = fn.softmax(training.logits(data.x_test), 1)
    predicted = data.labels[probabilities.argmax(axis=1)]
    label = data.labels[data.y_test]
    try:
        with atomic_path(path) as temporary:
            if path.suffix.lower() == ".npz":
                with open(temporary, "wb") as file:
                    np.savez(
                        file,
                        index=data.test_index,
                        label=label,
                        prediction=predicted,
                        probability=probabilities,
                        classes=data.labels,
                    )
            else:
                with open(temporary, "w", newline="") as text:
                    writer = csv.writer(text)
                    writer.writerow(["index", "label", "prediction", *(f"p_{name}" for name in data.labels)])
                    for row in zip(data.test_index, label, predicted, probabilities, strict=True):
                        writer.writerow([*row[:3], *(f"{p:.6g}" for p in row[3])])
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}", status=1) from error
