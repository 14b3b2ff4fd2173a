"""`python -m fastnorm tune`: scales, rounds, and a search that was killed goes on as if nothing had happened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest

from fastnorm.cli import main
from fastnorm.cli.training import Training
from fastnorm.cli.tune.space import SPACE, grid, narrowed
from fastnorm.cli.tune.study import Study

optuna = pytest.importorskip("optuna")
pytest.importorskip("sklearn")
pytest.importorskip("rich")


SMALL = ["tune", "--samples", "60", "--epochs", "1", "--final-epochs", "0"]


def trials_in(file: Path, study: str = "random-0", mode: str = "ro") -> list[Any]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # To read only, or Optuna would create the tables, maybe while the search does. After a kill with mode "rw":
    # SQLite takes back what was being written then, which it cannot where it may only read.
    storage = f"sqlite:///file:{file}?mode={mode}&uri=true"
    try:
        return list(optuna.load_study(study_name=study, storage=storage).trials)
    except Exception:  # not yet written
        return []


def completed(file: Path, study: str = "random-0", mode: str = "ro") -> list[tuple[dict[str, Any], float]]:
    """(what was tried, its loss) in the order of the search."""
    done = [trial for trial in trials_in(file, study, mode) if trial.state.name == "COMPLETE"]
    return [(trial.params, trial.value) for trial in sorted(done, key=lambda trial: trial.user_attrs["index"])]


def test_the_scales_are_what_they_say() -> None:
    """Whole numbers uniform; the rate uniform in its logarithm; momentum uniform in the logarithm of 1 - beta."""
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(sampler=sampler)
    drawn = [study.ask({n: axis.distribution() for n, axis in SPACE.items()}).params for _ in range(400)]
    for name, axis in SPACE.items():
        values = np.array([d[name] for d in drawn])
        assert values.min() >= axis.low and values.max() <= axis.high
        inner = np.log(values) if axis.log else values
        low, high = axis.inner(axis.low), axis.inner(axis.high)
        assert abs(np.mean((inner - low) / (high - low)) - 0.5) < 0.06, name
        if axis.whole:
            assert all(isinstance(d[name], int) for d in drawn)
    assert SPACE["lr"].log and SPACE["one_minus_momentum"].log
    assert not SPACE["layers"].log and not SPACE["width"].log


@pytest.mark.parametrize("count", [1, 2, 7, 24, 100])
def test_a_grid_gives_the_important_parameters_more_levels(count: int) -> None:
    space = dict(SPACE)
    points = grid(space, count)
    assert 1 <= len(points) <= count
    levels = [len({point[name] for point in points}) for name in space]
    assert levels == sorted(levels, reverse=True)
    assert all(space[name].low <= value <= space[name].high for point in points for name, value in point.items())
    assert len({tuple(point.items()) for point in points}) == len(points)


def test_rounds_narrow_towards_the_best() -> None:
    space = {"lr": SPACE["lr"], "layers": SPACE["layers"]}
    rng = np.random.default_rng(0)
    trials = [
        ({"lr": float(rate), "layers": int(layers)}, abs(np.log10(rate) + 3) + abs(layers - 5))
        for rate, layers in zip(10 ** rng.uniform(-4, -1, 60), rng.integers(1, 7, 60), strict=True)
    ]
    fine = narrowed(space, trials)
    assert 1e-4 <= fine["lr"].low < 1e-3 < fine["lr"].high < 1e-1
    assert fine["layers"].low >= 3 and fine["layers"].high == 6
    assert fine["lr"].high / fine["lr"].low < 1e-1 / 1e-4


def test_grid_against_random_reports_ranking_importance_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "t.png"
    arguments = [*SMALL[:-1], "1", "--search", "both", "--trials", "5", "--rounds", "2", "--plot", str(plot)]
    assert main([*arguments, "--params", "lr,width"]) == 0
    out = capsys.readouterr().out
    assert "best trials" in out and "grid: " in out and "random: 5 trials" in out
    assert "importance, measured" in out and "importance, as assumed by --params: lr, width" in out
    assert "test accuracy" in out and "again: python -m fastnorm train" in out
    assert plot.stat().st_size > 10_000


def test_a_search_killed_in_the_middle_goes_on_to_the_same_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL leaves a trial running in the file; resumed, the search ends with the trials of an undisturbed one."""
    command = [*SMALL, "--trials", "16", "--storage"]
    broken, whole = tmp_path / "broken.db", tmp_path / "whole.db"
    process = processes.start(*command, str(broken))
    processes.wait_until(lambda: len(completed(broken)) >= 2, process)
    process.kill()
    process.communicate()
    before = completed(broken, mode="rw")
    assert 2 <= len(before) < 16
    for file in (broken, whole):
        assert main([*command, str(file)]) == 0
        assert ("were there already" in capsys.readouterr().out) == (file == broken)
    assert completed(broken)[: len(before)] == before
    assert completed(broken) == completed(whole)


@pytest.mark.parametrize("kind", ["random", "grid"])
def test_trials_lost_at_any_moment_are_tried_again(kind: str) -> None:
    """A process may end with some trials running, some of their parameters not yet written, others after them done."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = {name: SPACE[name] for name in ("lr", "width", "layers")}

    def search(storage: Any) -> Study:
        return Study(optuna, storage, "s", space, 0, kind, 8)

    whole = search(optuna.storages.InMemoryStorage())
    expected = []
    for _ in range(whole.size):
        trial = whole.ask()
        expected.append(trial.params)
        whole.tell(trial, 1.0, 0.5, 0.1)

    storage = optuna.storages.InMemoryStorage()
    broken = search(storage)
    asked = [broken.ask() for _ in range(5)]
    for number in (0, 2, 3):
        broken.tell(asked[number], 1.0, 0.5, 0.1)
    broken.study.ask()  # no parameter and no index written yet
    again = search(storage)
    while len(again.finished()) < again.size:
        again.tell(again.ask(), 1.0, 0.5, 0.1)
    assert [trial.params for trial in again.finished()] == expected == [trial.params for trial in whole.finished()]


def test_ctrl_c_in_a_search_is_one_line_and_status_130(tmp_path: Path) -> None:
    file = tmp_path / "s.db"
    command = ["tune", "--epochs", "3", "--trials", "200", "--jobs", "2", "--storage", str(file)]
    process = processes.start(*command)
    processes.wait_until(lambda: bool(trials_in(file)), process)
    status, error = processes.interrupt(process)
    assert status == 130, error
    assert error.count("\n") == 1 and "interrupted after" in error and "goes on" in error


def test_parallel_processes_do_all_trials(tmp_path: Path) -> None:
    file = tmp_path / "p.db"
    arguments = [*SMALL, "--trials", "4", "--storage", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "fastnorm", *arguments, "--jobs", "2"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    alone = tmp_path / "a.db"
    assert main([*SMALL, "--trials", "4", "--storage", str(alone)]) == 0
    assert sorted(c[1] for c in completed(file)) == pytest.approx(sorted(c[1] for c in completed(alone)), rel=1e-3)


def test_storage_of_another_search_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "s.db"
    assert main([*SMALL, "--trials", "1", "--storage", str(file)]) == 0
    capsys.readouterr()
    assert main([*SMALL, "--trials", "1", "--storage", str(file), "--seed", "9"]) == 2
    assert "begun with --seed 0" in capsys.readouterr().err
    other = tmp_path / "other.db"
    other.write_bytes(b"this is no database, " * 100)
    assert main([*SMALL, "--storage", str(other)]) == 2
    error = capsys.readouterr().err
    assert "not the file of a search" in error and error.count("\n") == 1


def test_tending_keeps_what_helps_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An epoch that raised the validation loss is taken back; stopped and resumed gives what one run gives."""
    start = ["tune", "--tend", "--samples", "100", "--lr", "0.05"]
    whole, parts = tmp_path / "w.npz", tmp_path / "p.npz"
    assert main([*start, "--epochs", "6", "--checkpoint", str(whole)]) == 0
    assert main([*start, "--epochs", "3", "--checkpoint", str(parts)]) == 0
    plot = tmp_path / "t.png"
    pytest.importorskip("matplotlib")
    assert main([*start, "--epochs", "6", "--checkpoint", str(parts), "--resume", "--plot", str(plot)]) == 0
    capsys.readouterr()
    one, two = Training.read(whole), Training.read(parts)
    assert one["tended"] == two["tended"] and len(one["tended"]) == 6
    for name, array in one["model"].items():
        np.testing.assert_array_equal(array, two["model"][name])
    best = np.inf
    for (rate, loss, _, good), following in zip(one["tended"][:-1], one["tended"][1:], strict=True):
        assert good == (loss < best)
        best = min(best, loss)
        assert following[0] == (rate * 1.1 if good else rate / 2)
    assert plot.stat().st_size > 5_000


def test_a_tended_model_is_not_resumed_with_other_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.npz"
    start = ["tune", "--tend", "--samples", "60", "--epochs", "1", "--checkpoint", str(file)]
    assert main([*start, "--norm", "layer", "--optimizer", "sgd", "--seed", "3", "--lr", "0.02"]) == 0
    capsys.readouterr()
    before = file.read_bytes()
    others = {"--norm": "batch", "--optimizer": "adam", "--seed": "0", "--lr": "0.05"}
    for option, value in others.items():
        assert main([*start, "--resume", option, value]) == 2
        error = capsys.readouterr().err
        assert f"{option} {value} contradicts the checkpoint" in error and error.count("\n") == 1
    assert file.read_bytes() == before
    assert main([*start, "--resume", "--norm", "layer", "--lr", "0.02"]) == 0, "the same again is no contradiction"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--trials", "0"],
        ["--params", "lr,nonsense"],
        ["--jobs", "0"],
        ["--storage", "a.txt"],
        ["--checkpoint", "a.npz"],
        ["--lr", "0.1"],
        ["--tend", "--resume"],
        ["--tend", "--storage", "a.db"],
        ["--tend", "--trials", "24"],
        ["--tend", "--search", "random"],
        ["--tend", "--rounds", "2"],
        ["--tend", "--params", "lr"],
        ["--tend", "--final-epochs", "0"],
        ["--tend", "--jobs", "2"],
        ["--norm", "nonsense"],
    ],
    ids=" ".join,
)
def test_wrong_input_gets_one_line_and_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["tune", *arguments])
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    assert status == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    assert arguments[0] != "--tend" or arguments[1] in error
