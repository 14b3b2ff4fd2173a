"""What a search found: the ranking, grid against random, the importance of each parameter, and a picture."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np

from fastnorm.cli.common import draw, need, plain_log
from fastnorm.cli.tune.space import SPACE
from fastnorm.cli.tune.study import Trial

__all__ = ["importance", "plot_trials", "report"]


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
