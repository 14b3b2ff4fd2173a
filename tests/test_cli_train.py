"""`python -m fastnorm train`: it learns, its checkpoints are exact, and wrong input gets one line and exit status 2."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest

from fastnorm.cli import main
from fastnorm.cli.data import Data, digits, shifted, split
from fastnorm.cli.models import NORMS
from fastnorm.cli.training import OPTIMIZERS, SCHEDULES, Settings, Training, pack, unpack

pytest.importorskip("sklearn")
pytest.importorskip("rich")


SMALL = ["--epochs", "1", "--samples", "128", "--layers", "2", "--width", "4"]


@pytest.fixture(scope="module")
def small_digits() -> Data:
    return digits().head(150)


def tensors(training: Training) -> dict[str, bytes]:
    """Every array that a run's future depends on, as bytes."""
    arrays = pack({"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()})
    return {name: array.tobytes() for name, array in arrays.items()}


# ------------------------------------------------------------------------------------------------------------ learning


def test_train_learns_the_digits(capsys: pytest.CaptureFixture[str]) -> None:
    """Four epochs with batch norm pass 90 % on held-out digits, and the report has the norm's time both ways."""
    assert main(["train", "--epochs", "4", "--width", "16"]) == 0
    out = capsys.readouterr().out
    accuracy = float(out.split("test accuracy ")[1].split("%")[0])
    assert accuracy > 90
    assert "kernels" in out and "NumPy reference" in out and "in the batch norm" in out


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_trains_images(norm: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--norm", norm, *SMALL]) == 0
    out = capsys.readouterr().out
    assert "test accuracy" in out
    assert ("this network has no norm" in out) == (norm == "none")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_optimizers_and_schedules_lower_the_loss(optimizer: str, schedule: str, small_digits: Data) -> None:
    lr = 0.02 if optimizer in ("sgd", "nesterov") else 2e-3
    settings = Settings(
        optimizer=optimizer, schedule=schedule, lr=lr, epochs=3, layers=2, width=4, batch_size=25, shift=0
    )
    training = Training(settings, small_digits)
    rates = [training.optimizer.param_groups[0]["lr"] for _ in training.run()]
    assert training.curves["loss"][-1] < training.curves["loss"][0]
    assert rates[-1] == pytest.approx(lr) if schedule == "constant" else rates[-1] < lr


def test_batch_norm_trains_at_a_rate_at_which_no_norm_fails() -> None:
    final = {}
    for norm in ("none", "batch"):
        training = Training(Settings(norm=norm, lr=0.05, epochs=4, width=16), digits())
        for _ in training.run():
            pass
        final[norm] = 0.0 if training.diverged else training.test()[1]
    assert final["none"] < 0.3 and final["batch"] > 0.7


def test_divergence_is_reported_once_with_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--norm", "none", "--optimizer", "sgd", "--lr", "1e8", *SMALL, "--epochs", "3"]) == 1
    error = capsys.readouterr().err
    assert "did not train" in error and error.count("\n") == 1


@pytest.mark.parametrize("timing", [True, False])
def test_a_test_loss_that_is_no_number_is_a_failure_too(
    timing: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One step, its loss taken before it: only the test part sees what the step did to the weights."""
    command = ["train", *SMALL, "--norm", "none", "--optimizer", "sgd", "--lr", "1e30", "--batch-size", "128"]
    command += ["--predictions", str(tmp_path / "p.csv"), *([] if timing else ["--no-timing"])]
    assert main(command) == 1
    captured = capsys.readouterr()
    assert "the test loss became nan in epoch 1" in captured.err and "did not train" in captured.err
    assert "test accuracy" in captured.out and (tmp_path / "p.csv").exists() and "whole step" not in captured.out


def test_momentum_of_rmsprop_is_its_own_and_has_an_effect(tmp_path: Path) -> None:
    command = ["train", *SMALL, "--no-timing", "--optimizer", "rmsprop", "--checkpoint"]
    states = {}
    for momentum in (None, "0", "0.9"):
        file = tmp_path / f"{momentum}.npz"
        assert main([*command, str(file), *([] if momentum is None else ["--momentum", momentum])]) == 0
        states[momentum] = pack(Training.read(file)["model"])
    same = [all((a == b).all() for a, b in zip(states["0"].values(), states[m].values(), strict=True)) for m in states]
    assert same == [True, True, False]


def test_patience_stops_early_and_keeps_the_best_weights(small_digits: Data) -> None:
    """At an absurd rate the validation loss gets worse, so the run stops `patience` epochs after its best."""
    settings = Settings(lr=3.0, schedule="constant", epochs=40, patience=2, layers=2, width=4, batch_size=16)
    training = Training(settings, small_digits)
    for _ in training.run():
        pass
    assert training.stopped_early and training.epoch == training.best["epoch"] + 2 < 40
    assert training.validation == 15 and training.samples == 135
    loss, _ = training.evaluate(small_digits.x_train[135:], small_digits.y_train[135:])
    assert loss == training.best["loss"] == min(training.curves["held_out_loss"])


def test_a_last_batch_of_one_is_left_out(small_digits: Data) -> None:
    training = Training(Settings(epochs=1, batch_size=149, layers=2, width=4), small_digits)
    assert training.steps_per_epoch == 1
    assert [step.samples for step in training.run()] == [149]


def test_shifts_move_the_picture_and_fill_with_background() -> None:
    x = np.arange(2 * 9, dtype=np.float32).reshape(2, 1, 3, 3)
    moved = shifted(x, np.array([[1, -1], [0, 0]]), 1, -7.0)
    expected = np.full((3, 3), -7, np.float32)
    expected[1:, :2] = x[0, 0, :2, 1:]
    np.testing.assert_array_equal(moved[0, 0], expected)
    np.testing.assert_array_equal(moved[1], x[1])


def test_the_split_is_stratified_and_fixed() -> None:
    one, two = digits(), digits()
    assert one.digest == two.digest and len(one.y_test) == 360
    share = np.bincount(one.y_test) / len(one.y_test)
    np.testing.assert_allclose(share, np.bincount(one.y_train) / len(one.y_train), atol=0.005)
    assert abs(one.x_train.mean()) < 1e-5 and abs(one.x_train.std() - 1) < 1e-5


# --------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("norm", ["batch", "switchable", "weight"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_resumed_at_any_step_gives_the_same_bits(norm: str, optimizer: str, small_digits: Data, tmp_path: Path) -> None:
    settings = Settings(
        norm=norm, optimizer=optimizer, lr=0.01, epochs=2, layers=2, width=4, batch_size=40, dropout=0.3
    )
    straight = Training(settings, small_digits)
    for _ in straight.run():
        pass
    file = tmp_path / "state.npz"
    pieces = Training(settings, small_digits)
    while not pieces.finished:
        for _, _step in zip(range(3), pieces.run(), strict=False):
            pass
        pieces.save(file)
        np.random.default_rng(0).random(7)
        pieces = Training(settings, small_digits)
        pieces.restore(Training.read(file))
    assert tensors(pieces) == tensors(straight)
    assert pieces.curves == straight.curves
    assert pieces.test() == straight.test()


def test_the_checkpoint_is_plain_npz(small_digits: Data, tmp_path: Path) -> None:
    training = Training(Settings(epochs=1, layers=2, width=4), small_digits)
    next(training.run())
    training.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert not any(archive[name].dtype.hasobject for name in archive.files)
    assert sorted(os.listdir(tmp_path)) == ["a.npz"]


def test_pack_and_unpack_are_inverse() -> None:
    tree: dict[Any, Any] = {
        0: [1, 2.5, None, "a", True, (1, 2)],
        "b": {"c": np.arange(3), "d": float("inf")},
        "e": 0.1 + 0.2,
    }
    again = unpack(pack(tree))
    np.testing.assert_array_equal(again["b"].pop("c"), tree["b"].pop("c"))
    assert again == tree and list(again) == [0, "b", "e"]


def test_ctrl_c_keeps_the_state_and_resume_ends_with_the_same_bits(tmp_path: Path) -> None:
    """The whole way: a process is interrupted in the middle of a run, a second one goes on; a third was never
    interrupted.
    """
    command = ["train", "--epochs", "30", "--samples", "200", "--width", "8", "--layers", "2", "--batch-size", "16"]
    command += ["--no-timing", "--checkpoint"]
    broken, whole = tmp_path / "broken.npz", tmp_path / "whole.npz"
    process = processes.start(*command, str(broken))
    processes.wait_until(broken.exists, process)
    status, error = processes.interrupt(process)
    assert status == 130, error
    assert error.count("\n") == 1 and "interrupted in epoch" in error and "--resume" in error
    epoch, _ = Training.read(broken)["position"]
    assert 1 <= epoch < 30
    assert main([*command, str(broken), "--resume"]) == 0
    assert main([*command, str(whole)]) == 0
    first, second = Training.read(broken), Training.read(whole)
    for part in ("model", "optimizer"):
        a, b = pack(first[part]), pack(second[part])
        assert {k: v.tobytes() for k, v in a.items()} == {k: v.tobytes() for k, v in b.items()}
    assert first["curves"] == second["curves"]


def test_a_finished_run_resumes_to_its_report_and_goes_on_with_more_epochs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "c.npz")
    assert main(["train", *SMALL, "--no-timing", "--checkpoint", file]) == 0
    first = capsys.readouterr().out.split("test accuracy")[1].split(",")[0]
    assert main(["train", "--no-timing", "--samples", "128", "--checkpoint", file, "--resume"]) == 0
    assert capsys.readouterr().out.split("test accuracy")[1].split(",")[0] == first
    more = ["train", "--no-timing", "--samples", "128", "--checkpoint", file, "--resume", "--epochs", "2"]
    assert main(more) == 0
    assert Training.read(Path(file))["position"] == [2, 0]


# -------------------------------------------------------------------------------------------------------- files in, out


def test_own_data_predictions_and_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table with labels 3, 5 and 9: the predictions speak in those labels, and the probabilities sum to one."""
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    y = rng.choice([3, 5, 9], 300)
    x = rng.standard_normal((300, 6)) + y[:, None]
    np.savez(tmp_path / "own.npz", X=x, y=y)
    for norm in ("batch", "rms", "none"):
        arguments = ["train", "--data", str(tmp_path / "own.npz"), "--norm", norm, "--epochs", "8", "--width", "16"]
        arguments += ["--layers", "2", "--batch-size", "16", "--no-timing"]
        arguments += ["--predictions", str(tmp_path / "p.npz")]
        if norm == "batch":
            arguments += ["--plot", str(tmp_path / "c.png")]
        assert main(arguments) == 0
        with np.load(tmp_path / "p.npz") as p:
            assert set(p["classes"]) == {3, 5, 9} and set(p["prediction"]) <= {3, 5, 9}
            np.testing.assert_array_equal(y[p["index"]], p["label"])
            np.testing.assert_allclose(p["probability"].sum(axis=1), 1, rtol=1e-6)
            np.testing.assert_array_equal(p["classes"][p["probability"].argmax(axis=1)], p["prediction"])
            accuracy = np.mean(p["prediction"] == p["label"])
        assert f"test accuracy {accuracy:.2%}" in capsys.readouterr().out
        assert accuracy > 0.8
    assert (tmp_path / "c.png").stat().st_size > 10_000


def test_predictions_as_csv(tmp_path: Path) -> None:
    assert main(["train", *SMALL, "--no-timing", "--predictions", str(tmp_path / "p.csv")]) == 0
    with open(tmp_path / "p.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][:3] == ["index", "label", "prediction"] and len(rows) == 361


def held_out_samples(y: np.ndarray) -> np.ndarray:
    """Where the test part of `y` is: the split depends on the labels alone."""
    return split(np.zeros((len(y), 1, 1, 1)), y, "").test_index


def wrong_data(case: str, file: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 5)), np.arange(40) % 4
    match case:
        case "missing X":
            np.savez(file, x=x, y=y)
        case "five axes":
            np.savez(file, X=x.reshape(2, 2, 2, 5, 5), y=y[:2])
        case "labels of another length":
            np.savez(file, X=x, y=y[:-1])
        case "labels in two axes":
            np.savez(file, X=x, y=y[:, None])
        case "labels not whole":
            np.savez(file, X=x, y=y + 0.5)
        case "labels of text":
            np.savez(file, X=x, y=y.astype(str))
        case "one class":
            np.savez(file, X=x, y=np.zeros(40, int))
        case "a class of one sample":
            np.savez(file, X=x, y=np.r_[np.zeros(39, int), 1])
        case "NaN":
            x[7, 2] = np.nan
            np.savez(file, X=x, y=y)
        case "infinity":
            x[3, 1] = np.inf
            np.savez(file, X=x, y=y)
        case "far away":
            x[:, 3] = 0
            x[held_out_samples(y)[-1], 3] = 1e300
            np.savez(file, X=x, y=y)
        case "text":
            np.savez(file, X=x.astype(str), y=y)
        case "objects":
            np.savez(file, X=x.astype(object), y=y)
        case "empty":
            np.savez(file, X=x[:0], y=y[:0])
        case "not an archive":
            file.write_bytes(b"no archive at all")
        case "a single array":
            with open(file, "wb") as out:
                np.save(out, x)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("missing X", "no array named X"),
        ("five axes", "got shape (2, 2, 2, 5, 5)"),
        ("labels of another length", "shape (40,), got shape (39,)"),
        ("labels in two axes", "got shape (40, 1)"),
        ("labels not whole", "whole numbers"),
        ("labels of text", "whole numbers"),
        ("one class", "at least two classes"),
        ("a class of one sample", "label 1 has one"),
        ("NaN", "nan at index (7, 2)"),
        ("infinity", "inf at index (3, 1)"),
        ("far away", "float32's range"),
        ("text", "X must hold numbers"),
        ("objects", "cannot read X and y"),
        ("empty", "X is empty"),
        ("not an archive", "not a NumPy .npz file"),
        ("a single array", "X and y"),
        ("absent", "No such file"),
    ],
)
def test_wrong_data_gets_one_clear_line(
    case: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong_data(case, tmp_path / "d.npz")
    assert main(["train", "--data", str(tmp_path / "d.npz"), "--epochs", "1"]) == 2
    error = capsys.readouterr().err
    assert words in error and "--data" in error or words in error and "d.npz" in error
    assert error.count("\n") == 1


def test_wrong_use_of_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.npz"
    command = ["train", *SMALL, "--no-timing", "--checkpoint", str(file)]

    def complaint(arguments: list[str]) -> str:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "--resume needs --checkpoint" in complaint(["train", "--resume"])
    assert "no checkpoint" in complaint([*command, "--resume"])
    assert main(command) == 0
    capsys.readouterr()
    assert "add --resume" in complaint(command)
    assert "contradicts" in complaint([*command, "--resume", "--lr", "0.9"])
    assert "other data" in complaint(["train", "--checkpoint", str(file), "--resume", "--samples", "100"])
    file.write_bytes(file.read_bytes()[:500])
    assert "not a checkpoint" in complaint([*command, "--resume"])
    np.savez(file, a=np.zeros(3))
    assert "not a checkpoint" in complaint([*command, "--resume"])


def test_norms_of_images_refuse_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "t.npz", X=np.random.default_rng(0).random((50, 4)), y=np.arange(50) % 2)
    for norm in ("instance", "switchable"):
        assert main(["train", "--data", str(tmp_path / "t.npz"), "--norm", norm]) == 2
        assert "tables" in capsys.readouterr().err


def test_own_data_far_from_zero_is_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seconds since 1970 that differ by less than float32 can see there: standardised before they are rounded."""
    rng = np.random.default_rng(0)
    seconds = rng.uniform(0, 60, 300)
    np.savez(tmp_path / "t.npz", X=1.7e9 + seconds[:, None], y=(seconds > 30).astype(int))
    command = [
        "train",
        "--data",
        str(tmp_path / "t.npz"),
        "--epochs",
        "10",
        "--no-timing",
        "--predictions",
        str(tmp_path / "p.npz"),
    ]
    assert main(command) == 0
    with np.load(tmp_path / "p.npz") as found:
        assert (found["label"] == found["prediction"]).mean() > 0.9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "t.npz", "--predictions", "t.npz"], "different files"),
        (["--checkpoint", "c.npz", "--predictions", "c.npz"], "different files"),
        (["--data", "t.npz", "--shift", "2"], "--shift 2 moves images; the X of t.npz is a table"),
        (["--data", "empty.npz"], "not a NumPy .npz file"),
        (["--data", "inf.npz"], "y must hold whole numbers"),
        (["--data", "t.npz", "--batch-size", "1", "--norm", "batch"], "--batch-size"),
    ],
)
def test_what_would_go_wrong_later_is_refused(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).standard_normal((40, 3))
    np.savez("t.npz", X=x, y=np.arange(40) % 2)
    np.savez("inf.npz", X=x, y=np.where(np.arange(40) == 7, np.inf, np.arange(40) % 2))
    Path("empty.npz").touch()
    before = Path("t.npz").read_bytes()
    assert main(["train", "--epochs", "1", "--samples", "20", "--no-timing", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert Path("t.npz").read_bytes() == before
