"""The examples run as a user would run them, and what they print is what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def accuracy(text: str) -> float:
    found = re.search(r"test accuracy (\d+\.\d+)%", text)
    assert found is not None, text
    return float(found[1])


def test_mlp_functions(tmp_path: Path) -> None:
    assert accuracy(run("mlp_functions.py", tmp_path)) >= 97


def test_cnn_layers(tmp_path: Path) -> None:
    """It learns, folding leaves the function as it was, and the saved state loads without pickle."""
    out = run("cnn_layers.py", tmp_path)
    assert accuracy(out) >= 97.5
    difference = re.search(r"outputs differ by (\S+)", out)
    assert difference is not None and float(difference[1]) < 1e-3
    with np.load(tmp_path / "digits_cnn.npz", allow_pickle=False) as state:
        assert "1.running_mean" in state.files


def test_own_norm(tmp_path: Path) -> None:
    out = run("own_norm.py", tmp_path)
    assert accuracy(out) >= 97
    error = re.search(r"finite differences by (\S+)", out)
    assert error is not None and float(error[1]) < 1e-6


def test_every_example_is_tested() -> None:
    assert sorted(file.name for file in EXAMPLES.glob("*.py")) == ["cnn_layers.py", "mlp_functions.py", "own_norm.py"]
