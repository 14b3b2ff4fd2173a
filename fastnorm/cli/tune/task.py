"""What a search and a tended model have in common: the data, a part of it held out to judge by, and the network."""

from __future__ import annotations

import argparse
import dataclasses

from fastnorm.cli import data as data_
from fastnorm.cli.training import DEFAULT_LR, DEFAULT_MOMENTUM, Settings

__all__ = ["base_settings", "full_data", "judged"]

VALIDATION_SHARE = 0.2


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


def base_settings(args: argparse.Namespace) -> Settings:
    return Settings(
        norm=args.norm,
        optimizer=args.optimizer,
        lr=DEFAULT_LR[args.optimizer],
        momentum=DEFAULT_MOMENTUM[args.optimizer],
        epochs=args.epochs,
        seed=args.seed,
        shift=0 if args.data else 1,
    )
