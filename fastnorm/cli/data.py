"""Data for the commands: the handwritten digits of scikit-learn, or a user's own .npz file with X and y.

Images become float32 NCHW, tables float32 (samples, features), both standardised by the training part's own moments;
the test part is held out by a stratified split with a fixed seed, so that accuracies of different runs can be compared.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from fastnorm.cli.common import CommandError, need

__all__ = ["DATA_HELP", "Data", "digits", "load", "shifted"]

DATA_HELP = (
    "your own data in place of the digits: X, numbers of any dtype and shape (samples, features), (samples, height, "
    "width) or (samples, channels, height, width), and y, shape (samples,), whole numbers as class labels, each at "
    "least twice. A fifth is held out as the test part"
)

SPLIT_SEED = 0
TEST_SHARE = 0.2


@dataclass(frozen=True)
class Data:
    """Training and test part. `y` counts classes from 0; `labels[k]` is the label that class k had in the source."""

    x_train: NDArray[np.float32]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]
    labels: NDArray[np.int64]
    test_index: NDArray[np.int64]
    background: float
    name: str

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self.x_train.shape[1:]

    @property
    def digest(self) -> str:
        """Names the data in a checkpoint, so that a run is not resumed on other data."""
        hasher = hashlib.sha256()
        for array in (self.x_train, self.y_train, self.x_test, self.y_test):
            hasher.update(str(array.shape).encode())
            hasher.update(np.ascontiguousarray(array).tobytes())
        return hasher.hexdigest()[:16]

    def head(self, samples: int) -> Data:
        """The first `samples` training samples (they are in random order already) and the whole test part."""
        return Data(
            self.x_train[:samples],
            self.y_train[:samples],
            self.x_test,
            self.y_test,
            self.labels,
            self.test_index,
            self.background,
            self.name,
        )


def digits() -> Data:
    """The 1797 images of 8 x 8 pixels that scikit-learn ships (UCI optical recognition of handwritten digits)."""
    bunch = need("sklearn.datasets").load_digits()
    return split(bunch.images[:, None].astype(np.float32), bunch.target.astype(np.int64), "digits")


def load(path: Path) -> Data:
    """Read X and y from `path`, with a sentence for everything that can be wrong with them."""
    try:
        archive = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a NumPy .npz file"
        raise CommandError(f"--data {path}: {reason}") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise CommandError(f"--data {path}: expected an .npz file with the arrays X and y, got a single array")
    with archive:
        for name in ("X", "y"):
            if name not in archive.files:
                raise CommandError(
                    f"--data {path}: no array named {name}; the file holds {', '.join(archive.files) or 'none'}"
                )
        try:
            x, y = archive["X"], archive["y"]
        except (ValueError, BadZipFile, OSError) as error:
            raise CommandError(f"--data {path}: cannot read X and y: {error}") from error

    if x.dtype.kind not in "fiub":
        raise CommandError(f"--data {path}: X must hold numbers, got dtype {x.dtype}")
    if x.ndim not in (2, 3, 4):
        raise CommandError(
            f"--data {path}: X must be (samples, features), (samples, height, width) or (samples, channels, height, "
            f"width), got shape {x.shape}"
        )
    if y.ndim != 1 or len(y) != len(x):
        raise CommandError(f"--data {path}: y must be one label per sample, shape ({len(x)},), got shape {y.shape}")
    if 0 in x.shape:
        raise CommandError(f"--data {path}: X is empty, shape {x.shape}")
    if y.dtype.kind not in "iubf":
        raise CommandError(f"--data {path}: y must hold whole numbers as class labels, got dtype {y.dtype}")
    whole = (y == np.trunc(y)) & (np.abs(y.astype(np.float64)) < 2.0**63)
    if not whole.all():
        first = int(np.argmin(whole))
        raise CommandError(f"--data {path}: y must hold whole numbers below 2^63, got {y[first]} at index {first}")
    if not np.isfinite(x).all():
        first = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
        raise CommandError(f"--data {path}: X must be finite, got {x[first]} at index {first}")
    x = x.astype(np.float64)  # standardised in double: float32 would not tell large, close values apart
    if x.ndim == 3:
        x = x[:, None]
    return split(x, y.astype(np.int64), path.name)


def split(x: NDArray[np.floating], y: NDArray[np.int64], name: str) -> Data:
    """Hold out the test part, then standardise both parts by the mean and standard deviation of the training part."""
    import fastnorm as fn

    selection = need("sklearn.model_selection")
    labels, classes, counts = np.unique(y, return_inverse=True, return_counts=True)
    if len(labels) < 2:
        raise CommandError(f"{name}: y must hold at least two classes, got only the label {labels[0]}")
    if counts.min() < 2:
        raise CommandError(f"{name}: each class needs at least two samples, label {labels[counts.argmin()]} has one")
    try:
        train, test = selection.train_test_split(
            np.arange(len(y)), test_size=TEST_SHARE, stratify=classes, random_state=SPLIT_SEED
        )
    except ValueError as error:
        raise CommandError(f"{name}: too few samples to hold out a test part: {error}") from error
    # One mean and deviation for images, whose pixels share a unit; one per column for tables.
    axes = None if x.ndim == 4 else 0
    mean, var = fn.moments(x[train], axis=axes, keepdims=True)
    if not np.isfinite(var).all():
        raise CommandError(f"{name}: X must have a variance within float64's range; scale it down")
    scale = np.sqrt(np.where(var > 0, var, 1))
    with np.errstate(over="ignore"):
        x = ((x - mean) / scale).astype(np.float32)
    finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
    if not finite.all():
        raise CommandError(
            f"{name}: X must lie within float32's range once standardised, sample {int(np.argmin(finite))} does not"
        )
    return Data(x[train], classes[train], x[test], classes[test], labels, test, float(x[train].min()), name)


def shifted(x: NDArray[np.float32], shifts: NDArray[np.int64], reach: int, background: float) -> NDArray[np.float32]:
    """Each image of `x` moved by its row of `shifts` (down, right; up to `reach` pixels), the gap filled with
    `background`."""
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)), constant_values=background)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    rows = np.arange(len(x))
    return np.ascontiguousarray(windows[rows, :, reach - shifts[:, 0], reach - shifts[:, 1]])
