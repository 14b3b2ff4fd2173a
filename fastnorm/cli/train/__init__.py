"""`train`: a network with the norm of your choice on real data, then what the norm cost with the kernels and without.

Ctrl-C is held back until the running step is complete; with --checkpoint the state is then written and --resume goes on
from there to bitwise the same result.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

from fastnorm.cli.common import CommandError, DeferredInterrupt, bounded, example_help, need, output_file, whole
from fastnorm.cli.data import DATA_HELP
from fastnorm.cli.models import NORMS
from fastnorm.cli.train.norm_cost import print_norm_times
from fastnorm.cli.train.outputs import plot_curves, write_predictions
from fastnorm.cli.training import (
    DEFAULT_LR,
    DEFAULT_MOMENTUM,
    OPTIMIZERS,
    SCHEDULES,
    Settings,
    Training,
    refuse_contradictions,
)

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        **example_help(
            "Train a network with the norm of your choice on handwritten digits or your own data. Ends with the "
            "accuracy on held-out data and the time per step spent in the norm, with the kernels and with NumPy.",
            "train --norm batch --epochs 20 --plot curves.png --checkpoint run.npz",
        ),
    )
    add_settings(parser)
    parser.add_argument(
        "--patience",
        type=whole(1),
        metavar="N",
        help="stop when the loss on a tenth of the training data, held out for this, has not improved for N "
        "epochs, and keep the best weights",
    )
    parser.add_argument("--data", type=Path, metavar="FILE.npz", help=DATA_HELP)
    parser.add_argument("--samples", type=whole(2), metavar="N", help="use only the first N training samples")
    parser.add_argument(
        "--checkpoint",
        type=output_file(".npz"),
        metavar="FILE.npz",
        help="keep the state here after each epoch and on Ctrl-C",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoint, with its settings; give --checkpoint, --data and --samples as before, "
        "--epochs for another number of them in all, and the outputs you want",
    )
    parser.add_argument(
        "--plot", type=output_file(".png", ".svg", ".pdf"), metavar="FILE", help="draw the learning curves"
    )
    parser.add_argument(
        "--predictions",
        type=output_file(".npz", ".csv"),
        metavar="FILE",
        help="write the test part's labels, predictions and probabilities",
    )
    parser.add_argument(
        "--no-timing", dest="timing", action="store_false", help="leave out the measurement of the norm at the end"
    )
    parser.set_defaults(run=run)


def add_settings(parser: Any) -> None:
    """The options that define a run. Absent ones are None here and get their default later, so that a resumed run can
    tell what was asked for from what was not."""
    parser.add_argument("--norm", choices=NORMS, help="which norm (default: batch)")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, help="which optimiser (default: adam)")
    parser.add_argument("--lr", type=bounded(0), metavar="RATE", help="learning rate (default: adam 0.003, sgd 0.05)")
    parser.add_argument(
        "--momentum",
        type=bounded(0, 1, open_low=False),
        metavar="M",
        help="momentum of sgd and rmsprop, beta1 of adam (default: 0.9, rmsprop 0)",
    )
    parser.add_argument(
        "--weight-decay", type=bounded(0, open_low=False), metavar="D", help="L2 penalty (default: 1e-4)"
    )
    parser.add_argument("--schedule", choices=SCHEDULES, help="how the learning rate falls (default: cosine)")
    parser.add_argument("--epochs", type=whole(1), metavar="N", help="passes over the training data (default: 20)")
    parser.add_argument("--batch-size", type=whole(1), metavar="N", help="samples per step (default: 64)")
    parser.add_argument("--layers", type=whole(1, 50), metavar="N", help="hidden layers (default: 4)")
    parser.add_argument(
        "--width", type=whole(1), metavar="N", help="channels or units of the first of them (default: 32)"
    )
    parser.add_argument(
        "--dropout",
        type=bounded(0, 1, open_low=False),
        metavar="P",
        help="drop with this probability before the last layer (default: 0)",
    )
    parser.add_argument(
        "--shift",
        type=whole(0, 8),
        metavar="PIXELS",
        help="move training images at random by up to so many pixels (default: 1 for the digits, else 0)",
    )
    parser.add_argument("--seed", type=whole(0), metavar="N", help="of weights, order, shifts and dropout (default: 0)")


def run(args: argparse.Namespace) -> int:
    need("rich", "sklearn")
    if args.plot:
        need("matplotlib").use("Agg")
    files = [path.resolve() for path in (args.data, args.checkpoint, args.predictions, args.plot) if path]
    if len(set(files)) < len(files):
        raise CommandError("--data, --checkpoint, --predictions and --plot must be different files")
    if args.resume and not args.checkpoint:
        raise CommandError("--resume needs --checkpoint FILE, the file to go on from")
    if args.checkpoint and args.checkpoint.exists() and not args.resume:
        raise CommandError(f"{args.checkpoint} exists; add --resume to go on with it, or remove it to begin again")

    tree = Training.read(args.checkpoint) if args.resume else None
    settings = settings_of(args, None if tree is None else tree["settings"])
    data = load_data(args)
    if settings.shift and len(data.sample_shape) != 3:
        raise CommandError(f"--shift {settings.shift} moves images; the X of {data.name} is a table")
    training = Training(settings, data)
    if tree is not None:
        training.restore(tree)

    console = need("rich.console").Console(highlight=False, soft_wrap=True)
    where = f"epoch {training.epoch + 1}, step {training.step + 1}" if tree is not None else ""
    console.print(
        f"{data.name}: {training.samples} training, {training.validation or 'no'} validation, {len(data.x_test)} test "
        f"samples, {len(data.labels)} classes; norm {settings.norm}, {settings.optimizer}, lr {settings.lr:g}"
        + (f"; resumed at {where}" if where and not training.finished else "")
    )
    try:
        interrupted = loop(training, console, args.checkpoint)
    except ValueError as error:
        if not str(error).startswith("x: expected more than 1"):
            raise
        raise CommandError(
            f"--norm {settings.norm} has too few values to a statistic here ({error}); try a larger --batch-size, fewer "
            "--layers or another --norm"
        ) from error
    if args.plot and training.curves["loss"]:
        plot_curves(args.plot, training)
    if interrupted:
        state = (
            f"; state kept in {args.checkpoint}, go on with --resume"
            if args.checkpoint
            else "; nothing kept (no --checkpoint)"
        )
        raise KeyboardInterrupt(
            f"interrupted in epoch {min(training.epoch + 1, settings.epochs)} of {settings.epochs}{state}"
        )

    loss, accuracy = training.test()
    if training.stopped_early:
        console.print(f"stopped early: best epoch {training.best['epoch']} of {training.epoch}")
    console.print(
        f"test accuracy {accuracy:.2%} ({round(accuracy * len(data.y_test))} of {len(data.y_test)}), "
        f"test loss {loss:.4f}, {training.seconds:.1f} s of training"
    )
    if args.predictions:
        write_predictions(args.predictions, training)
    training.require_success(loss)
    if args.timing:
        print_norm_times(console, training)
    return 0


def settings_of(args: argparse.Namespace, stored: dict[str, Any] | None) -> Settings:
    """The options of a run with their defaults; on resume those of the checkpoint, which the command line may not
    contradict.
    """
    given = {
        field.name: getattr(args, field.name)
        for field in dataclasses.fields(Settings)
        if getattr(args, field.name, None) is not None
    }
    if stored is not None:
        refuse_contradictions(given, stored)
        return Settings(**{**stored, **given})
    optimizer = given.get("optimizer", Settings.optimizer)
    given.setdefault("lr", DEFAULT_LR[optimizer])
    given.setdefault("momentum", DEFAULT_MOMENTUM[optimizer])
    if "shift" not in given and getattr(args, "data", None):
        given["shift"] = 0
    if optimizer == "nesterov" and given["momentum"] == 0:
        raise CommandError("--optimizer nesterov needs a --momentum above 0")
    return Settings(**given)


def load_data(args: argparse.Namespace) -> Any:
    from fastnorm.cli import data

    found = data.load(args.data) if args.data else data.digits()
    return found.head(args.samples) if args.samples else found


def loop(training: Training, console: Any, checkpoint: Path | None) -> bool:
    """Train to the end with live progress; True when Ctrl-C ended it (after a whole step, with the state written)."""
    progress_ = need("rich.progress")
    settings = training.settings
    columns = (
        progress_.TextColumn("epoch {task.fields[epoch]}"),
        progress_.BarColumn(bar_width=24),
        progress_.TextColumn(
            "loss {task.fields[loss]}  accuracy {task.fields[accuracy]}  {task.fields[rate]} samples/s"
        ),
        progress_.TimeRemainingColumn(),
    )
    total = settings.epochs * training.steps_per_epoch
    done = training.epoch * training.steps_per_epoch + training.step
    live = progress_.Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with DeferredInterrupt() as interrupt, live as progress:
        task = progress.add_task("", total=total, completed=done, epoch="", loss="-", accuracy="-", rate="-")
        clock, seen = time.perf_counter(), 0
        smooth: float | None = None
        for step in training.run():
            seen += step.samples
            smooth = step.loss if smooth is None else 0.9 * smooth + 0.1 * step.loss
            total_loss, correct, samples = training.sums
            progress.update(
                task,
                advance=1,
                epoch=f"{min(training.epoch + 1, settings.epochs)}/{settings.epochs}",
                loss=f"{smooth:.4f}",
                accuracy=f"{(correct / samples if samples else training.curves['accuracy'][-1]):.1%}",
                rate=f"{seen / (time.perf_counter() - clock):.0f}",
            )
            if step.epoch_done:
                curves, kind = training.curves, "validation" if training.validation else "test"
                console.print(
                    f"epoch {training.epoch:3d}  loss {curves['loss'][-1]:.4f}  "
                    f"accuracy {curves['accuracy'][-1]:7.2%}  {kind} {curves['held_out_accuracy'][-1]:7.2%}  "
                    f"{seen / (time.perf_counter() - clock):.0f} samples/s"
                )
            if checkpoint and (step.epoch_done or interrupt):
                training.save(checkpoint)
            if interrupt and not training.finished:
                return True
    return False
