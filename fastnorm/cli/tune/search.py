"""The search: rounds of trials, in this process or in several, and the best of them trained on all training data.

Every choice follows from the seed and the trial's number (`study`), so that what is lost when a process is killed is
chosen again.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any

from fastnorm.cli.common import DeferredInterrupt, need
from fastnorm.cli.data import Data
from fastnorm.cli.training import Settings, Training
from fastnorm.cli.tune.report import plot_trials, report
from fastnorm.cli.tune.space import SPACE, narrowed, settings_for
from fastnorm.cli.tune.study import Study, Trial, open_storage
from fastnorm.cli.tune.task import base_settings, full_data, judged

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
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

    def __init__(self, args: argparse.Namespace, data: Data) -> None:
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
    settings: Settings, data: Data, stop: Callable[[], bool] = lambda: False
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


_worker_data: Data | None = None


def _start_worker(data: Data) -> None:
    """Workers leave Ctrl-C to the parent."""
    global _worker_data
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker_data = data


def _evaluate(settings: Settings) -> tuple[float, float, float] | None:
    assert _worker_data is not None
    return evaluate(settings, _worker_data)


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
    training.require_success(loss)
    return 0


def _plain(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)
