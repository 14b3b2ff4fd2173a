"""One model, tended: its learning rate is adjusted between epochs by what the last one did to the validation loss."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from fastnorm.cli.common import CommandError, DeferredInterrupt, draw, need, plain_log
from fastnorm.cli.training import DEFAULT_LR, Settings, Training, refuse_contradictions
from fastnorm.cli.tune.task import base_settings, full_data, judged

__all__ = ["run"]


def run(args: argparse.Namespace, asked: dict[str, Any]) -> int:
    """The bold driver: an epoch that lowers the validation loss is kept and the rate grows by a tenth; another is taken
    back and the rate halved. Its state is a checkpoint of `train`'s kind with the history of the tending in it. `asked`
    holds the settings that the user gave: on resume the checkpoint's count, and those must not contradict them."""
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
        if args.lr is not None:
            asked = {**asked, "lr": args.lr}
        refuse_contradictions(asked, kept["settings"])
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
    if not any(good for *_, good in history):  # the first finite loss is lower than none
        raise CommandError("no epoch had a finite validation loss: the network did not train; try a smaller --lr", 1)
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
