"""The command line as a whole: help, errors in one line, exit statuses, missing extras; `info` and `compare`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest

import fastnorm as fn
from fastnorm import functional, reference
from fastnorm.cli import COMMANDS, common, main, measure

NAMES = [command.__name__.rsplit(".", 1)[1] for command in COMMANDS]


def status_of(arguments: list[str]) -> int:
    """The exit status, whether main returns it or argparse exits with it."""
    try:
        return main(arguments)
    except SystemExit as exit_:
        return int(exit_.code or 0)


# ---------------------------------------------------------------------------------------------------------- the whole


@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_it_does_with_one_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"example: python -m fastnorm {name}" in out
    assert len(out.split("options:")[0].splitlines()) >= 3


def test_without_a_command_the_help_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of([]) == 0
    out = capsys.readouterr().out
    assert all(f"    {name}" in out for name in NAMES)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["info", "--nonsense"],
        ["compare", "--ops", "nonsense"],
        ["compare", "--shapes", "3"],
        ["compare", "--shapes", "3xa"],
        ["compare", "--threads", "0"],
        ["compare", "--threads", "1,x"],
        ["compare", "--seconds", "nan"],
        ["compare", "--plot", "/nonexistent/a.png"],
        ["compare", "--plot", "a.txt"],
        ["compare", "--dtypes", "int8"],
        ["compare", "--ops", "instance_norm", "--shapes", "4x4"],
        ["train", "--norm", "nonsense"],
        ["train", "--lr", "-1"],
        ["train", "--lr", "fast"],
        ["train", "--lr", "inf"],
        ["train", "--epochs", "0"],
        ["train", "--batch-size", "1.5"],
        ["train", "--momentum", "1"],
        ["train", "--dropout", "1"],
        ["train", "--optimizer", "nesterov", "--momentum", "0"],
        ["train", "--data", "/nonexistent.npz"],
        ["train", "--resume"],
    ],
    ids=" ".join,
)
def test_wrong_input_gets_one_line_and_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if arguments[0] == "train":
        pytest.importorskip("sklearn")
    pytest.importorskip("rich")
    assert status_of(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("arguments", "module", "package"),
    [
        (["compare", "--quick"], "rich", "rich"),
        (["train"], "sklearn", "scikit-learn"),
        (["train", "--plot", "a.png"], "matplotlib", "matplotlib"),
    ],
)
def test_a_missing_extra_is_one_line_naming_the_pip_command(
    arguments: list[str], module: str, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    pytest.importorskip("sklearn")
    for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert package in error and 'pip install "fastnorm-kernels[train]"' in error and error.count("\n") == 1


def test_the_package_and_the_help_import_no_extra() -> None:
    """NumPy alone: the extras are imported when a command that needs them runs."""
    code = (
        "import sys, fastnorm, fastnorm.cli; fastnorm.cli.build_parser().format_help(); "
        "print([m for m in ('rich', 'matplotlib', 'sklearn', 'optuna', 'torch', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m fastnorm compare --quick --seconds 0.001 --ops rms_norm | head -c 1 > /dev/null"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""


def test_atomic_path_leaves_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("old")
    with pytest.raises(RuntimeError), common.atomic_path(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == fn.config().keys()
    assert fn.__version__ in text


# ------------------------------------------------------------------------------------------------------------- compare


def test_compare_prints_and_writes_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    plot, table = tmp_path / "a.png", tmp_path / "a.json"
    shapes = ["--shapes", "4x8x5x5,16x32", "--seconds", "0.002"]
    assert main(["compare", *shapes, "--threads", "1,2", "--json", str(table), "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    rows = json.loads(table.read_text())["rows"]
    assert {row["op"] for row in rows} == set(measure.OPS)
    assert {row["threads"] for row in rows} == {1, 2}
    for row in rows:
        assert row["op"] in out
        assert set(row["contenders"]) == {"kernel", "fresh", "copy", "reference"}
        assert all(c["seconds"] > 0 for c in row["contenders"].values())
        assert row["contenders"]["copy"]["copies"] == 1
        assert row["gb_per_s"] > 0 and row["speed_up"] > 0 and row["fresh"] > 0
        assert row["error"] < 1e-4 and np.isfinite(row["error_ulp"])
    assert plot.stat().st_size > 10_000


def test_compare_answers_ctrl_c_with_what_it_has(tmp_path: Path) -> None:
    pytest.importorskip("rich")
    table = tmp_path / "a.json"
    # Rows of a second each: small ones reach the largest number of turns long before their time is up.
    shapes = ["--ops", "layer_norm", "--shapes", "512x4096,511x4096,510x4096", "--seconds", "0.5"]
    # Its bar counts the rows, and shows on a terminal alone.
    process, screen = processes.start_on_terminal("compare", *shapes, "--json", str(table))
    processes.wait_until(lambda: "1/6" in screen.text(), process)
    status, _ = processes.interrupt(process)
    error = screen.text()
    assert status == 130, error
    assert "interrupted after" in error and "of 6 rows" in error and "Traceback" not in error
    assert 1 <= len(json.loads(table.read_text())["rows"]) < 6


@pytest.mark.parametrize("peer", ["torch", "jax", "onnxruntime"])
def test_peers_compute_the_same_thing(peer: str) -> None:
    """A comparison with a peer that computes something else would be worth nothing."""
    pytest.importorskip(peer)
    from fastnorm.cli import peers

    for row in measure.panel(shapes=[(4, 8, 6, 6), (6, 40)]):
        if row.op == "dropout":
            continue
        problem = measure.Problem(row)
        expected = problem.result(reference)
        problem = measure.Problem(row)
        for best in (False, True):
            for name, call in peers.contenders(problem, [peer], 1, best=best).items():
                got = call()
                if isinstance(got, (tuple, list)):
                    got = got[0]
                if got is not None and not name.endswith("out"):
                    got = got.detach().numpy() if hasattr(got, "detach") else np.asarray(got)
                    atol = 1e-3 * float(np.abs(expected).max())
                    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=atol, err_msg=f"{name} {row.label}")


# ------------------------------------------------------------------------------------------------------------- measure


def test_ulp_is_the_spacing() -> None:
    values = np.array([1.0, 1.5, 2.0, 3e-39, 0.0, 1e30, 1e-45])
    np.testing.assert_array_equal(measure.ulp(values, "float32"), np.spacing(values.astype(np.float32)).astype(float))
    values = np.array([1.0, 1e-300, 7.25])
    np.testing.assert_array_equal(measure.ulp(values, "float64"), np.spacing(values))
    assert measure.ulp(np.array(1.0), "bfloat16") == 2**-7 and measure.ulp(np.array(3.0), "float16") == 2**-9


def test_alternate_and_ratio() -> None:
    """A contender that does twice the work takes about twice the time, and each gets its turns."""
    x = np.zeros(200_000)
    out = np.empty_like(x)

    def once() -> None:
        np.sqrt(x, out)

    def twice() -> None:
        np.sqrt(x, out)
        np.sqrt(x, out)

    samples = measure.alternate({"once": once, "twice": twice}, 0.05, least=4, most=12)
    middle, low, high = measure.ratio(samples["twice"], samples["once"])
    assert low <= middle <= high and 1.3 < middle < 3
    assert all(4 <= len(sample.times) <= 12 for sample in samples.values())


@pytest.mark.parametrize(
    "row", measure.panel(shapes=[(3, 8, 4, 5), (6, 64)], layouts=["nchw", "nhwc"]), ids=lambda r: r.label
)
def test_the_measured_error_is_the_error(row: measure.Row) -> None:
    """The reference in float64 has no error against itself; a result moved by k ULP has an error of about k."""
    import dataclasses
    import types

    exact = measure.Problem(dataclasses.replace(row, dtype="float64"))
    assert measure.error_of(exact, reference) == (0.0, 0.0)

    problem = measure.Problem(row)
    moved: Any = types.SimpleNamespace(
        **{name: getattr(functional, name) for name in (row.op, f"{row.op}_forward", f"{row.op}_backward")}
    )
    name = {"forward": f"{row.op}_forward", "backward": f"{row.op}_backward", "eval": row.op}[row.direction]

    def worse(*args: object, **kwargs: object) -> object:
        answer = getattr(functional, name)(*args, **kwargs)
        first = np.array(answer if row.direction == "eval" else answer[0])
        first += 1000 * np.spacing(np.abs(first).max())
        return first if row.direction == "eval" else (first, *answer[1:])

    setattr(moved, name, worse)
    _, after = measure.error_of(problem, moved)
    assert after > 500


def test_the_panel_has_every_function_and_real_shapes() -> None:
    rows = measure.panel()
    assert {row.op for row in rows} == set(measure.OPS)
    assert sum(row.op == "batch_norm" and row.direction == "eval" for row in rows) == len(measure.BN_SHAPES)
    assert not [row for row in rows if row.direction == "eval" and row.op != "batch_norm"]
    assert len({row.label for row in rows}) == len(rows)
    assert all(row.op in measure.CHANNEL_OPS for row in measure.panel(layouts=["nhwc"]))
