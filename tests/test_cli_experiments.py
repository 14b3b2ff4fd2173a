"""`python -m fastnorm experiments`: each runs, writes its three files, and gives the same figures for the same seed."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from fastnorm.cli import main
from fastnorm.cli.experiments import EXPERIMENTS

pytest.importorskip("sklearn")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_writes_a_picture_its_figures_and_three_lines(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiments", name, "--quick", "--out", str(tmp_path / "new")]) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "new"
    assert sorted(file.name for file in folder.iterdir()) == [f"{name}.csv", f"{name}.png", f"{name}.txt"]
    lines = (folder / f"{name}.txt").read_text().splitlines()
    assert len(lines) == 3 and all(line.endswith(".") and len(line) > 40 for line in lines)
    assert lines[0][:40] in out
    with open(folder / f"{name}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 3
    assert any(not math.isnan(float(v)) for row in rows for v in row.values() if v.replace(".", "").isdigit())
    assert (folder / f"{name}.png").stat().st_size > 10_000


def test_the_same_seed_gives_the_same_figures(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        assert main(["experiments", "saturation", "--quick", "--out", str(tmp_path / folder)]) == 0
    assert main(["experiments", "saturation", "--quick", "--seed", "1", "--out", str(tmp_path / "c")]) == 0
    texts = [(tmp_path / folder / "saturation.csv").read_text() for folder in "abc"]
    assert texts[0] == texts[1] != texts[2]


def test_unknown_names_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["experiments", "nonsense"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "batch-size" in error
    (tmp_path / "file").write_text("")
    assert main(["experiments", "speed", "--quick", "--out", str(tmp_path / "file" / "below")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
