"""Trials and where they are kept: an Optuna study per kind of search and round, in memory or in SQLite."""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastnorm.cli.common import CommandError
from fastnorm.cli.tune.space import Parameter, grid

__all__ = ["Study", "Trial", "open_storage"]


@dataclass(frozen=True)
class Trial:
    """A finished trial: what it tried and the validation loss and accuracy it reached."""

    params: dict[str, float]
    loss: float
    accuracy: float
    seconds: float
    round: int = 0


class Study:
    """One kind of search in one round: an Optuna study, resumable, whose every choice follows from (seed, index).

    The index counts trials as an undisturbed search would: a trial that was running when its process ended is marked as
    failed, and its index is the next to be tried.
    """

    def __init__(
        self, optuna: Any, storage: Any, name: str, space: dict[str, Parameter], seed: int, kind: str, count: int
    ) -> None:
        self.optuna, self.space, self.seed, self.kind = optuna, space, seed, kind
        self.points = grid(space, count) if kind == "grid" else []
        self.size = len(self.points) if kind == "grid" else count
        self.study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True, direction="minimize")
        states = optuna.trial.TrialState
        for trial in self.study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            self.study.tell(trial.number, state=states.FAIL)

    def finished(self) -> list[Trial]:
        states = (self.optuna.trial.TrialState.COMPLETE,)
        return [
            Trial(dict(t.params), t.value, t.user_attrs["accuracy"], t.user_attrs["seconds"])
            for t in sorted(self.study.get_trials(deepcopy=False, states=states), key=lambda t: t.user_attrs["index"])
        ]

    def ask(self) -> Any:
        """The next trial: a point of the grid, or what the sampler says."""
        states = self.optuna.trial.TrialState
        trials = self.study.get_trials(deepcopy=False, states=(states.COMPLETE, states.RUNNING))
        taken = {trial.user_attrs.get("index") for trial in trials}
        index = next(i for i in range(len(taken) + 1) if i not in taken)
        if self.kind == "grid":
            point = self.points[index]
            axes = {
                name: dataclasses.replace(axis, low=point[name], high=point[name]) for name, axis in self.space.items()
            }
        else:
            axes = self.space
            seed = int(np.random.SeedSequence([self.seed, index]).generate_state(1)[0])
            samplers = self.optuna.samplers
            self.study.sampler = (
                samplers.TPESampler(seed=seed, n_startup_trials=8)
                if self.kind == "tpe"
                else samplers.RandomSampler(seed=seed)
            )
        trial = self.study.ask({name: axis.distribution() for name, axis in axes.items()})
        trial.set_user_attr("index", index)
        return trial

    def tell(self, trial: Any, loss: float, accuracy: float, seconds: float) -> None:
        trial.set_user_attr("accuracy", accuracy)
        trial.set_user_attr("seconds", seconds)
        self.study.tell(trial, loss)


def open_storage(optuna: Any, args: argparse.Namespace, digest: str) -> Any:
    """The SQLite file, after a look whether it was begun with the same search; memory without --storage."""
    if args.storage is None:
        return optuna.storages.InMemoryStorage()
    about = {
        name: getattr(args, name)
        for name in ("search", "rounds", "params", "norm", "optimizer", "epochs", "seed", "trials")
    }
    about["data"] = digest
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{args.storage}")
        study = optuna.create_study(storage=storage, study_name="about", load_if_exists=True)
    except Exception as error:
        # SQLAlchemy and Optuna raise a dozen kinds of error for a file that is no such database.
        raise CommandError(f"--storage {args.storage}: not the file of a search: {type(error).__name__}") from error
    stored = study.user_attrs.get("about")
    if stored is None:
        study.set_user_attr("about", json.dumps(about))
    else:
        for name, value in json.loads(stored).items():
            if value != about[name]:
                raise CommandError(
                    f"--storage {args.storage} was begun with --{name} {value}, not {about[name]}; "
                    "use that, or a new file"
                )
    return storage
