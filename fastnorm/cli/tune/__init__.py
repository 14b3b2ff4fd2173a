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
from pathlib import Path
from typing import Any

from fastnorm.cli.common import CommandError, bounded, choice_list, example_help, need, output_file, whole
from fastnorm.cli.data import DATA_HELP
from fastnorm.cli.models import NORMS
from fastnorm.cli.training import OPTIMIZERS
from fastnorm.cli.tune import search, tend
from fastnorm.cli.tune.space import SPACE

__all__ = ["add_parser", "run"]

# Options of one of the two alone, and of both, with their defaults. The parser leaves absent ones None, so that what
# was asked for can be told from what was not.
SEARCH: dict[str, Any] = {
    "trials": 24,
    "search": "random",
    "rounds": 1,
    "params": ["lr", "one_minus_momentum", "batch_size", "width", "layers", "weight_decay"],
    "final_epochs": 24,
    "jobs": 1,
    "storage": None,
}
TENDING: dict[str, Any] = {"lr": None, "checkpoint": None, "resume": None}
BOTH: dict[str, Any] = {"norm": "batch", "optimizer": "adam", "epochs": 8, "seed": 0}


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "tune",
        **example_help(
            "Search for good hyperparameters: random, grid, both against each other, or TPE, in rounds from coarse to "
            "fine, in parallel processes. Or tend one model, with its learning rate adjusted between epochs.",
            "tune --trials 40 --rounds 2 --jobs 2 --storage search.db --plot trials.png",
        ),
    )
    parser.add_argument("--trials", type=whole(1), metavar="N", help="trials in all (default: 24)")
    parser.add_argument(
        "--search",
        choices=("random", "grid", "both", "tpe"),
        help="how to choose: random, grid, both with N trials each for comparison, or tpe (default: random)",
    )
    parser.add_argument("--rounds", type=whole(1, 10), metavar="N", help="rounds from coarse to fine (default: 1)")
    parser.add_argument(
        "--params",
        type=choice_list(SPACE),
        metavar="P,..",
        help=f"what to search, the most important first: a grid gives it more levels. Of {', '.join(SPACE)} "
        f"(default: {','.join(SEARCH['params'])})",
    )
    parser.add_argument("--norm", choices=NORMS, help="which norm (default: batch)")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, help="which optimiser (default: adam)")
    parser.add_argument("--epochs", type=whole(1), metavar="N", help="epochs per trial, or of tending (default: 8)")
    parser.add_argument(
        "--final-epochs",
        type=whole(0),
        metavar="N",
        help="epochs of the best trial's training on all training data; 0 leaves it out (default: 24)",
    )
    parser.add_argument("--samples", type=whole(10), metavar="N", help="use only the first N training samples")
    parser.add_argument("--data", type=Path, metavar="FILE.npz", help=DATA_HELP)
    parser.add_argument("--seed", type=whole(0), metavar="N", help="of the search and of each trial (default: 0)")
    parser.add_argument("--jobs", type=whole(1, 256), metavar="N", help="trials at a time, in processes (default: 1)")
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
        "--checkpoint",
        type=output_file(".npz"),
        metavar="FILE.npz",
        help="--tend: keep the model here after each epoch",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        default=None,
        help="--tend: go on from the checkpoint, with its settings; give --checkpoint, --data and --samples as before, "
        "and --epochs for their number in all",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    need("rich", "sklearn")
    if args.plot:
        need("matplotlib").use("Agg")
    own, others = (TENDING, SEARCH) if args.tend else (SEARCH, TENDING)
    for name in others:
        if getattr(args, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise CommandError(f"{option} belongs to {'a search, not to --tend' if args.tend else '--tend'}")
    asked = {name: getattr(args, name) for name in BOTH if getattr(args, name) is not None}
    vars(args).update({name: value for name, value in {**BOTH, **own}.items() if getattr(args, name) is None})
    return tend.run(args, asked) if args.tend else search.run(args)
