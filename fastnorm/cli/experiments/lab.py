"""What every experiment uses: the data, a training run, a progress bar, colours, and the form of a result."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fastnorm.cli import data as data_
from fastnorm.cli import models
from fastnorm.cli.common import need
from fastnorm.cli.training import Settings, Training

__all__ = ["COLOURS", "LABELS", "Lab", "Result", "he_weights", "mean", "percent", "steps_of"]

LABELS = {
    "none": "no norm",
    "batch": "batch norm",
    "layer": "layer norm",
    "group": "group norm",
    "instance": "instance norm",
    "switchable": "switchable norm",
    "weight": "weight norm",
    "rms": "RMS norm",
}
COLOURS = {
    "none": "0.45",
    "batch": "tab:blue",
    "layer": "tab:orange",
    "group": "tab:green",
    "instance": "tab:red",
    "switchable": "tab:purple",
    "weight": "tab:brown",
    "rms": "tab:pink",
}


@dataclass
class Result:
    """The measurements as rows of equal keys, three lines about them, and the picture."""

    rows: list[dict[str, Any]]
    lines: list[str]
    figure: Any


class Lab:
    """The bench of one experiment: `quick` cuts everything down to a trial of the machinery."""

    def __init__(self, name: str, seed: int, quick: bool, console: Any) -> None:
        self.seed, self.quick = seed, quick
        progress = need("rich.progress")
        self.bar = progress.Progress(
            progress.TextColumn(name),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=None)

    def __enter__(self) -> Lab:
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()

    def each(self, items: Iterable[Any]) -> Iterable[Any]:
        """The items, with the bar moving on after each."""
        chosen = list(items)
        self.bar.update(self.task, total=len(chosen), completed=0)
        for item in chosen:
            yield item
            self.bar.advance(self.task)

    def choose(self, full: Any, quick: Any) -> Any:
        return quick if self.quick else full

    def seeds(self, count: int) -> list[int]:
        return [self.seed + i for i in range(self.choose(count, 1))]

    @cached_property
    def images(self) -> data_.Data:
        """The digits as 1 x 8 x 8 images."""
        found = data_.digits()
        return found.head(96) if self.quick else found

    @cached_property
    def vectors(self) -> data_.Data:
        """The digits as 64 numbers."""
        flat = self.images
        return dataclasses.replace(
            flat, x_train=flat.x_train.reshape(len(flat.x_train), -1), x_test=flat.x_test.reshape(len(flat.x_test), -1)
        )

    def train(
        self,
        settings: Settings,
        data: data_.Data,
        model: Callable[[], Any] | None = None,
        after_epoch: Callable[[Training], None] | None = None,
    ) -> Training:
        """A whole run. `model` builds the network, after the seed is set; `after_epoch` looks at it between epochs."""
        training = start(settings, data, model)
        if after_epoch is not None:
            after_epoch(training)
        for step in training.run():
            if step.epoch_done and after_epoch is not None:
                after_epoch(training)
        return training

    def network(self, settings: Settings, data: data_.Data) -> Callable[[], Any]:
        """The builder of the usual network for `data` with He's weights."""
        return lambda: he_weights(
            models.network(
                settings.norm,
                data.sample_shape,
                len(data.labels),
                layers=settings.layers,
                width=settings.width,
                dropout=settings.dropout,
            )
        )


def start(settings: Settings, data: data_.Data, model: Callable[[], Any] | None = None) -> Training:
    """A run before its first step, its network built by `model` from the settings' seed."""
    from fastnorm import nn

    nn.manual_seed(settings.seed)
    return Training(settings, data, None if model is None else model())


def he_weights(model: Any, scale: float = 1.0) -> Any:
    """Give the products of `model` He's initial weights (variance 2/n, which keeps that of a ReLU network) times
    `scale`.

    The layers start from PyTorch's, of variance 1/(3 n), with which a deep network without a norm hardly starts to
    learn; to compare with that would be to compare with a known mistake. With weight norm the length g is scaled. He
    et al. 2015.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("weight_g") or (parameter.ndim >= 2 and not name.endswith("weight_v")):
            parameter.data *= parameter.data.dtype.type(math.sqrt(6) * scale)
    return model


def mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def steps_of(curve: list[float], level: float) -> float:
    """The first epoch whose value reaches `level`; infinity when none does."""
    return next((epoch for epoch, value in enumerate(curve, 1) if value >= level), math.inf)
