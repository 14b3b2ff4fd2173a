"""The training loop that `train`, `tune` and `experiments` share: settings, steps, evaluation, checkpoints.

Everything random in an epoch (order, shifts) comes from a generator seeded by (seed, epoch), so a run can stop after
any step and go on in another process: the checkpoint holds parameters, optimiser, the state of the generator behind
dropout, and the position; what follows is bitwise what an uninterrupted run computes. The loop is a generator of
steps, and the caller decides what to show and when to stop.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from fastnorm import nn, optim
from fastnorm.cli import models
from fastnorm.cli.common import CommandError, atomic_path
from fastnorm.cli.data import Data, shifted

__all__ = [
    "DEFAULT_LR",
    "DEFAULT_MOMENTUM",
    "OPTIMIZERS",
    "SCHEDULES",
    "Settings",
    "Step",
    "Training",
    "pack",
    "refuse_contradictions",
    "unpack",
]

OPTIMIZERS = ("sgd", "nesterov", "rmsprop", "adam", "adamw")
SCHEDULES = ("cosine", "constant", "step", "exponential", "inverse")
# Each rule's own: momentum on top of RMSprop is an option, and multiplies its steps by 1 / (1 - momentum).
DEFAULT_MOMENTUM = {"sgd": 0.9, "nesterov": 0.9, "rmsprop": 0.0, "adam": 0.9, "adamw": 0.9}
DEFAULT_LR = {"sgd": 0.05, "nesterov": 0.05, "rmsprop": 1e-3, "adam": 3e-3, "adamw": 3e-3}
FORMAT = 1


@dataclass(frozen=True)
class Settings:
    """What defines a run; two runs with equal settings on equal data give equal bits."""

    norm: str = "batch"
    optimizer: str = "adam"
    lr: float = 3e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    epochs: int = 20
    batch_size: int = 64
    layers: int = 4
    width: int = 32
    dropout: float = 0.0
    shift: int = 1
    seed: int = 0
    patience: int = 0


@dataclass(frozen=True)
class Step:
    """What one step did; `epoch_done` marks the last step of an epoch, whose curves are then complete."""

    epoch: int
    loss: float
    accuracy: float
    samples: int
    epoch_done: bool


class Training:
    """One run of training: `for step in training.run(): ...`."""

    def __init__(self, settings: Settings, data: Data, model: Any = None) -> None:
        self.settings = settings
        self.data = data
        nn.manual_seed(settings.seed)
        self.model = (
            model
            if model is not None
            else models.network(
                settings.norm,
                data.sample_shape,
                len(data.labels),
                layers=settings.layers,
                width=settings.width,
                dropout=settings.dropout,
            )
        )
        self.criterion = nn.CrossEntropyLoss()
        self.optimizer = make_optimizer(settings, self.model)
        self.epoch = 0
        self.step = 0
        self.sums = [0.0, 0, 0]  # of the epoch so far: loss times samples, correct, samples
        self.curves: dict[str, list[float]] = {"loss": [], "accuracy": [], "held_out_loss": [], "held_out_accuracy": []}
        self.best: dict[str, Any] = {"loss": math.inf, "epoch": 0, "state": None}
        self.diverged = False
        self.seconds = 0.0
        # With early stopping a tenth of the training part decides; the test part never does.
        samples = len(data.x_train)
        self.validation = max(1, samples // 10) if settings.patience else 0
        self.samples = samples - self.validation
        if self.samples < 2:
            raise CommandError(f"too few training samples: {samples}")
        self.schedule = make_schedule(settings, self.optimizer, settings.epochs * self.steps_per_epoch)

    @property
    def steps_per_epoch(self) -> int:
        full, rest = divmod(self.samples, self.settings.batch_size)
        # One sample has no batch statistics: a last batch of one is left out (the next epoch has another order).
        return full + (rest > 1 or full == 0)

    @property
    def stopped_early(self) -> bool:
        return bool(self.settings.patience) and self.epoch - self.best["epoch"] >= self.settings.patience

    @property
    def finished(self) -> bool:
        return self.diverged or self.epoch >= self.settings.epochs or self.stopped_early

    def run(self) -> Iterator[Step]:
        """Train from the present position to the end, one step at a time; stop asking and nothing more happens."""
        while not self.finished:
            order, shifts = self._plan()
            size = self.settings.batch_size
            while self.step < self.steps_per_epoch and not self.diverged:
                start = time.perf_counter()
                chosen = order[self.step * size : (self.step + 1) * size]
                x = self.data.x_train[chosen]
                if shifts is not None:
                    x = shifted(x, shifts[chosen], self.settings.shift, self.data.background)
                loss, correct = self.train_step(x, self.data.y_train[chosen])
                self.step += 1
                self.sums[0] += loss * len(chosen)
                self.sums[1] += correct
                self.sums[2] += len(chosen)
                self.diverged = not math.isfinite(loss)
                done = self.step == self.steps_per_epoch or self.diverged
                if done:
                    self._close_epoch()
                self.seconds += time.perf_counter() - start
                yield Step(self.epoch, loss, correct / len(chosen), len(chosen), done)
                if done:
                    break

    def train_step(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> tuple[float, int]:
        """Forward, backward, update; returns the loss and how many were right."""
        self.model.train()
        with np.errstate(all="ignore"):  # a run that diverges is reported once, by its loss
            logits = self.model(x)
            loss = float(self.criterion(logits, y))
            self.model.zero_grad()
            self.model.backward(self.criterion.backward())
            self.optimizer.step()
        self.schedule.step()
        return loss, int(np.sum(logits.argmax(axis=1) == y))

    def logits(self, x: NDArray[np.float32], batch: int = 256) -> NDArray[np.float32]:
        """The network's answers in evaluation mode."""
        self.model.eval()
        with nn.no_grad(), np.errstate(all="ignore"):
            parts = [self.model(x[start : start + batch]) for start in range(0, len(x), batch)]
        self.model.train()
        return np.concatenate(parts)

    def evaluate(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> tuple[float, float]:
        """(loss, accuracy) in evaluation mode."""
        logits = self.logits(x)
        with nn.no_grad(), np.errstate(all="ignore"):
            loss = float(self.criterion(logits, y))
        return loss, float(np.mean(logits.argmax(axis=1) == y))

    def test(self) -> tuple[float, float]:
        """(loss, accuracy) on the test part."""
        return self.evaluate(self.data.x_test, self.data.y_test)

    def require_success(self, test_loss: float) -> None:
        """Raise CommandError, exit status 1, for a run whose loss on training or test data is no finite number."""
        which, loss = ("loss", self.curves["loss"][-1]) if self.diverged else ("test loss", test_loss)
        if not math.isfinite(loss):
            raise CommandError(
                f"the {which} became {loss} in epoch {self.epoch}: the network did not train; try a smaller --lr or "
                "--norm batch",
                status=1,
            )

    def _plan(self) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """The order of the present epoch, and each sample's shift."""
        rng = np.random.default_rng([self.settings.seed, self.epoch])
        order = rng.permutation(self.samples)
        reach = self.settings.shift if len(self.data.sample_shape) == 3 else 0
        if not reach:
            return order, None
        return order, rng.integers(-reach, reach + 1, (self.samples, 2))

    def _close_epoch(self) -> None:
        total, correct, samples = self.sums
        if self.validation:
            held_out = self.evaluate(self.data.x_train[self.samples :], self.data.y_train[self.samples :])
        else:
            held_out = self.test()
        for name, value in zip(self.curves, (total / samples, correct / samples, *held_out), strict=True):
            self.curves[name].append(value)
        self.epoch += 1
        self.step = 0
        self.sums = [0.0, 0, 0]
        if self.settings.patience and held_out[0] < self.best["loss"]:
            self.best = {"loss": held_out[0], "epoch": self.epoch, "state": self.model.state_dict()}
        if self.settings.patience and self.finished and self.best["state"] is not None:
            self.model.load_state_dict(self.best["state"])

    # Checkpoints

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, as copies."""
        return {
            "format": FORMAT,
            "settings": dataclasses.asdict(self.settings),
            "data": [self.data.name, self.data.digest],
            "position": [self.epoch, self.step],
            "sums": list(self.sums),
            "curves": {name: list(curve) for name, curve in self.curves.items()},
            "best": dict(self.best),
            "diverged": self.diverged,
            "seconds": self.seconds,
            "generator": nn.get_rng_state(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def save(self, path: Path) -> None:
        """Write the state to a checkpoint."""
        self.write(path, self.state())

    @staticmethod
    def write(path: Path, tree: dict[str, Any]) -> None:
        """Write a state, whole or not at all."""
        try:
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **pack(tree))
        except OSError as error:
            raise CommandError(f"cannot write the checkpoint {path}: {error.strerror}", status=1) from error

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """The content of a checkpoint, or one sentence about why it is none."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                tree: dict[str, Any] = unpack({name: archive[name] for name in archive.files})
        except FileNotFoundError:
            raise CommandError(f"there is no checkpoint {path} to resume from") from None
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, AttributeError) as error:
            raise CommandError(f"{path} is not a checkpoint of this command") from error
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            raise CommandError(f"{path} is not a checkpoint of this version of the command")
        return tree

    def restore(self, tree: dict[str, Any]) -> None:
        """Go to where the checkpoint was written."""
        if tree["data"][1] != self.data.digest:
            raise CommandError(f"the checkpoint was written with other data ({tree['data'][0]})")
        self.model.load_state_dict(tree["model"])
        self.optimizer.load_state_dict(tree["optimizer"])
        nn.set_rng_state(tree["generator"])
        self.epoch, self.step = tree["position"]
        self.schedule.load_state_dict({"last_epoch": self.epoch * self.steps_per_epoch + self.step})
        self.sums, self.best = list(tree["sums"]), dict(tree["best"])
        self.curves = {name: list(curve) for name, curve in tree["curves"].items()}
        self.diverged, self.seconds = tree["diverged"], tree["seconds"]


def refuse_contradictions(given: dict[str, Any], stored: dict[str, Any]) -> None:
    """Settings asked for on resume must be those of the checkpoint; only the number of epochs may change."""
    for name, value in given.items():
        if name != "epochs" and value != stored[name]:
            option = "--" + name.replace("_", "-")
            raise CommandError(
                f"{option} {value} contradicts the checkpoint, which was written with {option} {stored[name]}"
            )


def make_optimizer(settings: Settings, model: Any) -> Any:
    """The optimiser of the settings; weight decay is for the weights of products, not for gamma, beta and biases."""
    groups = optim.decay_groups(model, settings.weight_decay)
    match settings.optimizer:
        case "sgd":
            return optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
        case "nesterov":
            return optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=True)
        case "rmsprop":
            return optim.RMSprop(groups, lr=settings.lr, momentum=settings.momentum)
        case "adam":
            return optim.Adam(groups, lr=settings.lr, betas=(settings.momentum, 0.999))
        case "adamw":
            return optim.AdamW(groups, lr=settings.lr, betas=(settings.momentum, 0.999))
    raise CommandError(f"--optimizer must be one of {', '.join(OPTIMIZERS)}, got {settings.optimizer!r}")


def make_schedule(settings: Settings, optimizer: Any, steps: int) -> Any:
    """The learning rate over the `steps` of the whole run; the decaying ones end at a hundredth or a tenth of the
    start.
    """
    match settings.schedule:
        case "cosine":
            return optim.CosineAnnealingLR(optimizer, steps)
        case "step":
            return optim.StepLR(optimizer, max(1, math.ceil(steps / 3)))
        case "exponential":
            return optim.ExponentialLR(optimizer, 0.01 ** (1 / steps))
        case "inverse":
            return optim.InverseTime(optimizer, 9 / steps)
    return optim.InverseTime(optimizer, 0.0)


def pack(tree: Any) -> dict[str, NDArray[Any]]:
    """Nested dictionaries, lists, numbers, strings and arrays as plain arrays for `numpy.savez`: no pickle.

    Arrays are stored under "0", "1", ...; the rest is one JSON text that refers to them. JSON writes a float with all
    the digits it needs to be read back as the same float, and dictionaries are written as pairs so that keys keep
    their type.
    """
    arrays: dict[str, NDArray[Any]] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            arrays[str(len(arrays))] = value
            return {"array": len(arrays) - 1}
        if isinstance(value, np.generic):
            return plain(value.item())
        if isinstance(value, dict):
            return {"pairs": [[plain(key), plain(entry)] for key, entry in value.items()]}
        if isinstance(value, tuple):
            return {"tuple": [plain(entry) for entry in value]}
        if isinstance(value, list):
            return [plain(entry) for entry in value]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(f"a checkpoint cannot hold {type(value).__name__}")

    text = json.dumps(plain(tree))
    return {"tree": np.frombuffer(text.encode(), np.uint8), **arrays}


def unpack(arrays: dict[str, NDArray[Any]]) -> Any:
    """The inverse of `pack`."""

    def rich(value: Any) -> Any:
        if isinstance(value, list):
            return [rich(entry) for entry in value]
        if isinstance(value, dict):
            if "array" in value:
                return arrays[str(value["array"])]
            if "tuple" in value:
                return tuple(rich(entry) for entry in value["tuple"])
            return {rich(key): rich(entry) for key, entry in value["pairs"]}
        return value

    return rich(json.loads(arrays["tree"].tobytes()))
