"""`tune`: search for good hyperparameters with Optuna, or tend one model while it learns.

Scales follow the meaning of each parameter: whole numbers uniformly, the learning rate on a log scale, momentum beta
on a log scale of 1 - beta (the length of its memory is 1 / (1 - beta)). A search may run in rounds from coarse to
fine: the next round's ranges are those of the best quarter of all trials so far. Trials are judged by a part of the
training data held out for this; the test part is used once, for the best trial, trained again on all training data.

What a trial tries depends on the seed and the trial's number alone, and finished trials are kept in SQLite with
--storage, so a search that was killed goes on as if nothing had happened.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastnorm.cli import data as data_
from fastnorm.cli.common import (
    CommandError,
    DeferredInterrupt,
    bounded,
    choice_list,
    draw,
    example_help,
    need,
    output_file,
    plain_log,
    whole,
)
from fastnorm.cli.models import NORMS
from fastnorm.cli.training import DEFAULT_LR, OPTIMIZERS, Settings, Training

__all__ = ["SPACE", "Parameter", "add_parser", "grid", "narrowed", "run"]


@dataclass(frozen=True)
class Parameter:
    """One axis of the search: a range on a scale. `whole`: integers; `log`: uniform in the logarithm."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def inner(self, value: float) -> float:
        return math.log(value) if self.log else value

    def outer(self, value: float) -> float:
        value = math.exp(value) if self.log else value
        if self.whole:
            value = round(value)
        return min(max(value, self.low), self.high)

    def distribution(self) -> Any:
        distributions = need("optuna.distributions")
        if self.whole:
            return distributions.IntDistribution(int(self.low), int(self.high), log=self.log)
        return distributions.FloatDistribution(self.low, self.high, log=self.log)


# In the order of importance that experience assigns: the default of --params, to be compared with what a search
# measures.
SPACE = {
    "lr": Parameter(1e-4, 1e-1, log=True),
    "one_minus_momentum": Parameter(1e-2, 0.5, log=True),
    "batch_size": Parameter(16, 256, log=True, whole=True),
    "width": Parameter(8, 48, whole=True),
    "layers": Parameter(1, 6, whole=True),
    "weight_decay": Parameter(1e-6, 1e-2, log=True),
    "dropout": Parameter(0.0, 0.5),
}
DEFAULT_PARAMS = "lr,one_minus_momentum,batch_size,width,layers,weight_decay"
VALIDATION_SHARE = 0.2


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "tune",
        **example_help(
            "Search for good hyperparameters: random, grid, both against each other, or TPE, in rounds from coarse to "
            "fine, in parallel processes. Or tend one model, with its learning rate adjusted between epochs.",
            "tune --trials 40 --rounds 2 --jobs 2 --storage search.db --plot trials.png",
        ),
    )
    parser.add_argument("--trials", type=whole(1), default=24, metavar="N", help="trials in all (default: 24)")
    parser.add_argument(
        "--search",
        choices=("random", "grid", "both", "tpe"),
        default="random",
        help="how to choose: random, grid, both with N trials each for comparison, or tpe (default: random)",
    )
    parser.add_argument(
        "--rounds", type=whole(1, 10), default=1, metavar="N", help="rounds from coarse to fine (default: 1)"
    )
    parser.add_argument(
        "--params",
        type=choice_list(SPACE),
        default=DEFAULT_PARAMS.split(","),
        metavar="P,..",
        help=f"what to search, the most important first: a grid gives it more levels. Of {', '.join(SPACE)} "
        f"(default: {DEFAULT_PARAMS})",
    )
    parser.add_argument("--norm", choices=NORMS, default="batch", help="which norm (default: batch)")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adam", help="which optimiser (default: adam)")
    parser.add_argument("--epochs", type=whole(1), default=8, metavar="N", help="epochs per trial (default: 8)")
    parser.add_argument(
        "--final-epochs",
        type=whole(0),
        default=24,
        metavar="N",
        help="epochs of the best trial's training on all training data; 0 leaves it out (default: 24)",
    )
    parser.add_argument("--samples", type=whole(10), metavar="N", help="use only the first N training samples")
    parser.add_argument(
        "--data", type=Path, metavar="FILE.npz", help="your own data: arrays X and y (default: the digits)"
    )
    parser.add_argument(
        "--seed", type=whole(0), default=0, metavar="N", help="of the search and of each trial (default: 0)"
    )
    parser.add_argument(
        "--jobs", type=whole(1, 256), default=1, metavar="N", help="trials at a time, in processes (default: 1)"
    )
    parser.add_argument(
        "--storage",
        type=output_file(".db"),
        metavar="FILE.db",
        help="keep the trials in this SQLite file; if it is there, go on with it",
    )
    parser.add_argument("--plot", type=output_file(".png", ".svg", ".pdf"), metavar="FILE", help="draw the trials")
    parser.add_argument(
        "--tend",
        action="store_true",
        help="in place of a search, tend one model: raise the learning rate by a tenth after an epoch that "
        "lowered the validation loss, else take the epoch back and halve the rate",
    )
    parser.add_argument("--lr", type=bounded(0), metavar="RATE", help="--tend: the rate to begin with")
    parser.add_argument(
        "--checkpoint", type=output_file(".npz"), metavar="FILE.npz", help="--tend: keep the model here"
    )
    parser.add_argument("--resume", action="store_true", help="--tend: go on from the checkpoint")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    need("rich", "sklearn")
    if args.plot:
        need("matplotlib").use("Agg")
    if not args.tend:
        for option in ("checkpoint", "lr", "resume"):
            if getattr(args, option):
                raise CommandError(f"--{option} belongs to --tend")
        return search(args)
    if args.storage:
        raise CommandError("--storage belongs to a search, not to --tend; --checkpoint keeps the model")
    return tend(args)


def judged(args: argparse.Namespace) -> data_.Data:
    """The data of a trial: the training part alone, its tail held out in place of the test part."""
    found = full_data(args)
    held_out = max(1, int(len(found.y_train) * VALIDATION_SHARE))
    return dataclasses.replace(
        found,
        x_train=found.x_train[:-held_out],
        y_train=found.y_train[:-held_out],
        x_test=found.x_train[-held_out:],
        y_test=found.y_train[-held_out:],
    )


def full_data(args: argparse.Namespace) -> data_.Data:
    found = data_.load(args.data) if args.data else data_.digits()
    return found.head(args.samples) if args.samples else found


# ---------------------------------------------------------------------------------------------------------------------
# The search


def search(args: argparse.Namespace) -> int:
    optuna = need("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    console = need("rich.console").Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 160  # a pipe or a file has no width: do not cut the columns
    data = judged(args)
    storage = open_storage(optuna, args, data.digest)
    base = base_settings(args)
    kinds = ["grid", "random"] if args.search == "both" else [args.search]
    found: dict[str, list[Trial]] = {}
    interrupted = False
    with Progress(console, total=len(kinds) * args.trials) as progress, Runner(args, data) as runner:
        for kind in kinds:
            trials = found[kind] = []
            for round_ in range(args.rounds):
                space = {name: SPACE[name] for name in args.params}
                if round_:
                    space = narrowed(space, [(trial.params, trial.loss) for trial in trials])
                count = args.trials * (round_ + 1) // args.rounds - args.trials * round_ // args.rounds
                study = Study(optuna, storage, f"{kind}-{round_}", space, args.seed + 1000 * round_, kind, count)
                progress.done(study.finished())
                interrupted = not runner.work(study, count, base, progress)
                trials += [dataclasses.replace(trial, round=round_) for trial in study.finished()]
                if interrupted:
                    break
            if interrupted:
                break
    everything = [trial for trials in found.values() for trial in trials]
    if everything:
        report(console, optuna, args, found)
        if args.plot:
            plot_trials(args.plot, args.params, found)
    if interrupted:
        kept = (
            f"; {args.storage} keeps them, the same command goes on"
            if args.storage
            else "; nothing kept (no --storage)"
        )
        raise KeyboardInterrupt(f"interrupted after {len(everything)} of {len(kinds) * args.trials} trials{kept}")
    if args.final_epochs:
        best = min(everything, key=lambda trial: trial.loss)
        return final(console, args, settings_for(base, best.params))
    return 0


@dataclass(frozen=True)
class Trial:
    """A finished trial: what it tried and the validation loss and accuracy it reached."""

    params: dict[str, float]
    loss: float
    accuracy: float
    seconds: float
    round: int = 0


def base_settings(args: argparse.Namespace) -> Settings:
    return Settings(
        norm=args.norm,
        optimizer=args.optimizer,
        lr=DEFAULT_LR[args.optimizer],
        epochs=args.epochs,
        seed=args.seed,
        shift=0 if args.data else 1,
    )


def settings_for(base: Settings, params: dict[str, float]) -> Settings:
    """The settings of a trial: the base with what the search chose."""
    chosen: dict[str, Any] = {}
    for name, value in params.items():
        if name == "one_minus_momentum":
            chosen["momentum"] = 1 - value
        else:
            chosen[name] = int(value) if SPACE[name].whole else value
    return dataclasses.replace(base, **chosen)


def narrowed(space: dict[str, Parameter], trials: list[tuple[dict[str, float], float]]) -> dict[str, Parameter]:
    """The ranges of the best quarter of `trials` (at least three), widened by a tenth of the present range on each
    side.
    """
    best = sorted(trials, key=lambda trial: trial[1])[: max(3, len(trials) // 4)]
    result = {}
    for name, axis in space.items():
        values = [axis.inner(params[name]) for params, _ in best]
        margin = 0.1 * (axis.inner(axis.high) - axis.inner(axis.low))
        low, high = axis.outer(min(values) - margin), axis.outer(max(values) + margin)
        result[name] = dataclasses.replace(axis, low=low, high=high)
    return result


def grid(space: dict[str, Parameter], count: int) -> list[dict[str, float]]:
    """At most `count` points: levels are added one by one to the parameters in their order while the product allows."""
    levels = dict.fromkeys(space, 1)
    grew = True
    while grew:
        grew = False
        for name, axis in space.items():
            more = {**levels, name: levels[name] + 1}
            room = not axis.whole or more[name] <= axis.high - axis.low + 1
            if room and math.prod(more.values()) <= count:
                levels, grew = more, True
    points: list[dict[str, float]] = [{}]
    for name, axis in space.items():
        low, high, n = axis.inner(axis.low), axis.inner(axis.high), levels[name]
        # Cell centres: one level is the middle of the range, and no level lies on its edge.
        values = dict.fromkeys(axis.outer(low + (high - low) * (i + 0.5) / n) for i in range(n))
        points = [{**point, name: value} for point in points for value in values]
    return points


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


class Progress:
    """A bar that counts trials and names the best so far."""

    def __init__(self, console: Any, total: int) -> None:
        progress = need("rich.progress")
        self.console = console
        self.bar = progress.Progress(
            progress.TextColumn("trials"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[best]}"),
            progress.TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=total, best="")
        self.best = math.inf

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()

    def done(self, trials: list[Trial]) -> None:
        if trials:
            self.console.print(f"{len(trials)} trials were there already")
        for trial in trials:
            self.count(trial.loss, trial.accuracy)

    def count(self, loss: float, accuracy: float) -> None:
        if loss < self.best:
            self.best = loss
            self.bar.update(self.task, best=f"best: loss {loss:.4f}, accuracy {accuracy:.1%}")
        self.bar.advance(self.task)


class Runner:
    """Works through a study, in this process or in several; stops between steps on Ctrl-C."""

    def __init__(self, args: argparse.Namespace, data: data_.Data) -> None:
        self.args, self.data = args, data
        self.interrupt = DeferredInterrupt()
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Runner:
        self.interrupt.__enter__()
        if self.args.jobs > 1:
            # One thread each: several processes share the cores. Read by the libraries when the workers import them.
            for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
                os.environ[name] = "1"
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.args.jobs, context, initializer=_start_worker, initargs=(self.data,))
        return self

    def __exit__(self, *_: Any) -> None:
        self.interrupt.__exit__(None, None, None)
        if self.pool is not None:
            workers = list((self.pool._processes or {}).values())
            self.pool.shutdown(wait=not self.interrupt, cancel_futures=True)
            if self.interrupt:
                for worker in workers:
                    worker.terminate()

    def work(self, study: Study, count: int, base: Settings, progress: Progress) -> bool:
        """Until the study has `count` trials (a grid: all of its points); False when interrupted."""
        left = min(count, study.size) - len(study.finished())
        if self.pool is None:
            for _ in range(left):
                trial = study.ask()
                result = evaluate(settings_for(base, trial.params), self.data, lambda: bool(self.interrupt))
                if result is None:
                    return False
                study.tell(trial, *result)
                progress.count(*result[:2])
            return not self.interrupt
        running: dict[Future[Any], Any] = {}
        while left or running:
            while left and len(running) < self.args.jobs:
                trial = study.ask()
                running[self.pool.submit(_evaluate, settings_for(base, trial.params))] = trial
                left -= 1
            finished, _ = wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
            for future in finished:
                result = future.result()
                study.tell(running.pop(future), *result)
                progress.count(*result[:2])
            if self.interrupt:
                return False
        return True


def evaluate(
    settings: Settings, data: data_.Data, stop: Callable[[], bool] = lambda: False
) -> tuple[float, float, float] | None:
    """(validation loss, accuracy, seconds) of one trial; None when stopped. Divergence counts as twice the loss of
    chance.
    """
    start = time.perf_counter()
    training = Training(settings, data)
    for _ in training.run():
        if stop():
            return None
    worst = 2 * math.log(len(data.labels))
    loss = training.curves["held_out_loss"][-1]
    loss = worst if training.diverged or not math.isfinite(loss) else min(loss, worst)
    return loss, training.curves["held_out_accuracy"][-1], time.perf_counter() - start


_worker_data: data_.Data | None = None


def _start_worker(data: data_.Data) -> None:
    """Workers leave Ctrl-C to the parent."""
    global _worker_data
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker_data = data


def _evaluate(settings: Settings) -> tuple[float, float, float] | None:
    assert _worker_data is not None
    return evaluate(settings, _worker_data)


# ---------------------------------------------------------------------------------------------------------------------
# What was found


def report(console: Any, optuna: Any, args: argparse.Namespace, found: dict[str, list[Trial]]) -> None:
    """The ranking, grid against random, and the importance that the trials themselves show."""
    table = need("rich.table").Table(title="best trials", title_justify="left")
    for name in ("rank", "search", "round", "val. loss", "val. accuracy", *args.params, "s"):
        table.add_column(name.replace("one_minus_momentum", "momentum"), justify="right")
    everything = sorted(((t, kind) for kind, trials in found.items() for t in trials), key=lambda pair: pair[0].loss)
    for rank, (trial, kind) in enumerate(everything[:10], 1):
        figures = f"{trial.loss:.4f}", f"{trial.accuracy:.1%}"
        values = [_show(name, trial.params[name]) for name in args.params]
        table.add_row(str(rank), kind, str(trial.round + 1), *figures, *values, f"{trial.seconds:.1f}")
    console.print(table)
    if len(found) > 1:
        for kind, trials in found.items():
            if trials:
                losses = sorted(t.loss for t in trials)
                distinct = len({t.params[args.params[0]] for t in trials})
                console.print(
                    f"{kind}: {len(trials)} trials, best loss {losses[0]:.4f}, median {float(np.median(losses)):.4f}, "
                    f"{distinct} distinct values of {args.params[0]}"
                )
    measured = importance(optuna, args.params, [trial for trial, _ in everything])
    if measured is None:
        console.print("importance: too few different trials to measure it")
    else:
        shares = ", ".join(f"{_label(name)} {share:.0%}" for name, share in measured.items())
        console.print(f"importance, measured (share of the variance of the loss explained): {shares}")
        console.print(f"importance, as assumed by --params: {', '.join(_label(name) for name in args.params)}")


def importance(optuna: Any, names: list[str], trials: list[Trial]) -> dict[str, float] | None:
    """Optuna's fANOVA over all rounds and searches, on the full ranges."""
    if len(trials) < 4 or len({trial.loss for trial in trials}) < 2:
        return None
    study = optuna.create_study()
    distributions = {name: SPACE[name].distribution() for name in names}
    for trial in trials:
        study.add_trial(optuna.create_trial(params=trial.params, distributions=distributions, value=trial.loss))
    try:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
    except (RuntimeError, ValueError):  # no variance to explain
        return None


def _label(name: str) -> str:
    return "momentum" if name == "one_minus_momentum" else name


def _show(name: str, value: float) -> str:
    if name == "one_minus_momentum":
        return f"{1 - value:.3f}"
    return str(int(value)) if SPACE[name].whole else f"{value:.2g}"


def plot_trials(path: Path, names: list[str], found: dict[str, list[Trial]]) -> None:
    """Loss against each parameter on its own scale, and the best loss so far against the number of trials."""
    plt = need("matplotlib.pyplot")
    panels = len(names) + 1
    columns = min(4, panels)
    lines = math.ceil(panels / columns)
    figure, table = plt.subplots(lines, columns, figsize=(2.4 * columns, 2.3 * lines), squeeze=False, sharey=True)
    axes = list(table.flat)
    rounds = 1 + max(t.round for trials in found.values() for t in trials)
    # One colour per search where two are compared, one per round otherwise.
    groups = [(kind, trials) for kind, trials in found.items()]
    colours = ["tab:orange", "tab:blue"]
    if len(found) == 1:
        (kind, trials) = groups[0]
        groups = [(f"{kind}, round {r + 1}", [t for t in trials if t.round == r]) for r in range(rounds)]
        colours = [plt.get_cmap("viridis")(0.1 + 0.7 * r / max(1, rounds - 1)) for r in range(rounds)]
    best = min((t for trials in found.values() for t in trials), key=lambda t: t.loss)
    for name, panel in zip(names, axes, strict=False):
        axis = SPACE[name]
        for (label, trials), colour, marker in zip(groups, colours, "so^vDPX*<>", strict=False):
            x, y = [t.params[name] for t in trials], [t.loss for t in trials]
            panel.scatter(x, y, s=18, alpha=0.85, marker=marker, color=colour, linewidths=0, zorder=3, label=label)
        panel.scatter(
            [best.params[name]], [best.loss], s=110, facecolors="none", edgecolors="tab:red", zorder=4, label="best"
        )
        margin = 0.05 * (axis.inner(axis.high) - axis.inner(axis.low))
        ends = axis.inner(axis.low) - margin, axis.inner(axis.high) + margin
        panel.set_xlim(*(math.exp(end) if axis.log else end for end in ends))
        panel.set_yscale("log")
        if axis.log:
            panel.set_xscale("log")
            plain_log(panel.xaxis)
            if name == "batch_size":
                panel.set_xticks([16, 32, 64, 128, 256])
        panel.set_xlabel("1 - momentum" if name == "one_minus_momentum" else name.replace("_", " "))
        panel.grid(color="0.92")
    last = axes[len(names)]
    for (label, trials), colour in zip(found.items(), colours if len(found) > 1 else ["0.3"], strict=False):
        losses = np.minimum.accumulate([t.loss for t in trials])
        last.step(range(1, len(losses) + 1), losses, where="post", color=colour, label=label)
    last.set_xlabel("trials, best so far")
    last.xaxis.get_major_locator().set_params(integer=True)
    last.grid(color="0.92")
    for panel in axes[panels:]:
        panel.set_visible(False)
    for line in table:
        line[0].set_ylabel("validation loss, nats")
    plain_log(axes[0].yaxis)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.tight_layout()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False, bbox_to_anchor=(0.5, 1.0))
    draw(path, figure)
    plt.close(figure)


def final(console: Any, args: argparse.Namespace, settings: Settings) -> int:
    """The best trial trained on all training data; the one time that the test part is looked at."""
    training = Training(dataclasses.replace(settings, epochs=args.final_epochs), full_data(args))
    with DeferredInterrupt() as interrupt:
        for _ in training.run():
            if interrupt:
                raise KeyboardInterrupt("interrupted while training the best trial on all data")
    loss, accuracy = training.test()
    console.print(
        f"best trial, trained for {args.final_epochs} epochs on all training data: test accuracy {accuracy:.2%} "
        f"({round(accuracy * len(training.data.y_test))} of {len(training.data.y_test)}), test loss {loss:.4f}"
    )
    option = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    names = ("norm", "optimizer", "lr", "momentum", "batch_size", "width", "layers", "weight_decay", "dropout", "seed")
    shown = " ".join(f"--{n.replace('_', '-')} {_plain(option[n])}" for n in names)
    source = f" --data {args.data}" if args.data else ""
    source += f" --samples {args.samples}" if args.samples else ""
    console.print(f"again: python -m fastnorm train {shown} --epochs {args.final_epochs}{source}")
    return 0


def _plain(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


# ---------------------------------------------------------------------------------------------------------------------
# One model, tended


def tend(args: argparse.Namespace) -> int:
    """The bold driver: an epoch that lowers the validation loss is kept and the rate grows by a tenth; another is taken
    back and the rate halved. Its state is a checkpoint of `train`'s kind with the history of the tending in it."""
    if args.resume and not args.checkpoint:
        raise CommandError("--resume needs --checkpoint FILE, the file to go on from")
    if args.checkpoint and args.checkpoint.exists() and not args.resume:
        raise CommandError(f"{args.checkpoint} exists; add --resume to go on with it, or remove it to begin again")
    console = need("rich.console").Console(highlight=False, soft_wrap=True)
    data = judged(args)
    settings = dataclasses.replace(base_settings(args), schedule="constant", lr=args.lr or DEFAULT_LR[args.optimizer])
    history: list[list[float]] = []
    kept: dict[str, Any] | None = None
    rate = settings.lr
    if args.resume:
        kept = Training.read(args.checkpoint)
        if "tended" not in kept:
            raise CommandError(f"{args.checkpoint} is the checkpoint of `train`, not of --tend")
        history, rate = kept["tended"], kept["next_rate"]
        settings = Settings(**{**kept["settings"], "epochs": 1_000_000})
    with DeferredInterrupt() as interrupt:
        while len(history) < args.epochs:
            training = Training(dataclasses.replace(settings, epochs=1_000_000), data)
            if kept is not None:
                training.restore(kept)
            for group in training.optimizer.param_groups:
                group["lr"] = group["initial_lr"] = rate
            before = min((loss for _, loss, _, good in history if good), default=math.inf)
            for step in training.run():
                if step.epoch_done or interrupt:
                    break
            if interrupt:
                where = f"; state kept in {args.checkpoint}, go on with --resume" if args.checkpoint and history else ""
                raise KeyboardInterrupt(f"interrupted in epoch {len(history) + 1} of {args.epochs}{where}")
            loss, accuracy = training.curves["held_out_loss"][-1], training.curves["held_out_accuracy"][-1]
            good = math.isfinite(loss) and loss < before
            history.append([rate, loss if math.isfinite(loss) else math.inf, accuracy, float(good)])
            console.print(
                f"epoch {len(history):3d}  rate {rate:.2e}  validation loss {loss:.4f}  accuracy {accuracy:.2%}  "
                f"{'kept, rate up' if good else 'taken back, rate halved'}"
            )
            rate = rate * 1.1 if good else rate / 2
            if good or kept is None:
                kept = training.state()
            if not good and len(history) == 1:
                kept = Training(settings, data).state()
            kept["tended"], kept["next_rate"] = history, rate
            if args.checkpoint:
                Training.write(args.checkpoint, kept)
    assert kept is not None
    training = Training(dataclasses.replace(settings, epochs=1_000_000), data)
    training.restore(kept)
    whole_ = full_data(args)
    loss, accuracy = training.evaluate(whole_.x_test, whole_.y_test)
    console.print(
        f"test accuracy {accuracy:.2%} ({round(accuracy * len(whole_.y_test))} of {len(whole_.y_test)}), "
        f"test loss {loss:.4f}, {sum(int(h[3]) for h in history)} of {len(history)} epochs kept"
    )
    if args.plot:
        plot_tended(args.plot, history)
    return 0


def plot_tended(path: Path, history: list[list[float]]) -> None:
    plt = need("matplotlib.pyplot")
    epochs = np.arange(1, len(history) + 1)
    rates, losses, _, good = (np.array(column) for column in zip(*history, strict=True))
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 4.6), sharex=True)
    kept = good > 0
    top.plot(epochs, losses, color="0.8", zorder=1)
    top.scatter(epochs[kept], losses[kept], color="tab:blue", s=24, label="kept")
    top.scatter(epochs[~kept], losses[~kept], color="tab:red", s=24, marker="x", label="taken back")
    top.set_yscale("log")
    plain_log(top.yaxis)
    top.set_ylabel("validation loss, nats")
    top.legend(frameon=False)
    bottom.step(epochs, rates, where="mid")
    bottom.set_yscale("log")
    plain_log(bottom.yaxis)
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("epoch")
    for panel in (top, bottom):
        panel.grid(color="0.92")
    figure.tight_layout()
    draw(path, figure)
    plt.close(figure)
