"""Speed without a clock: instructions per element that the kernels execute, counted by valgrind's callgrind.

Method: a few functions for each type of arithmetic, at AVX2 (valgrind knows no AVX-512), each run in a fork of one process,
because valgrind takes longer to import NumPy than to do the rest; what a fork counts beyond one that does nothing is the
run's. Counts repeat exactly for a build, and a bound leaves a quarter for another compiler. What a bound guards is the plan:
vectors that fill, loops without a branch or a division per element, work per channel that stays small beside the work on its
elements.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastnorm._kernels import core

SCRIPT = """
import os
import numpy as np, fastnorm as fn
rng = np.random.default_rng(0)
def both(name, shape, *arguments, dtype=np.float32, **keywords):
    x, dy = (rng.standard_normal(shape, np.float32).astype(dtype) for _ in range(2))
    y, ctx = getattr(fn, name + "_forward")(x, *arguments, **keywords)
    getattr(fn, name + "_backward")(dy, ctx)
def alike(dtype):
    one, many = np.ones(16, dtype), np.ones(1024, dtype)
    both("batch_norm", (8, 16, 32, 32), None, None, one, one, True, dtype=dtype)
    both("batch_norm", (128, 1024), None, None, many, many, True, dtype=dtype)
    both("layer_norm", (128, 1024), 1024, many, many, dtype=dtype)
    both("softmax", (128, 1024), dtype=dtype)
def f32():
    alike(np.float32)
    both("group_norm", (1, 512, 8, 8), 32, np.ones(512, np.float32), np.ones(512, np.float32), dtype=np.float16)
    both("dropout", (128, 1024), 0.5, True, seed=1)

x, one, logits, labels = np.ones((4, 4, 4), np.float32), np.ones(4, np.float32), np.ones(3, np.float32), np.zeros(4, np.int64)
row, rows, g = np.ones((1, 64), np.float32), np.ones(64, np.float32), np.ones((4, 1, 1), np.float32)
x[0], row[0, 0] = 2, 2
calls = [
    ("batch_norm", (x, one.copy(), one.copy(), one, one, True)), ("batch_norm", (x, one, one, one, one)),
    ("layer_norm", (row, (64,), rows, rows)), ("rms_norm", (row, (64,), rows)), ("group_norm", (x, 2, one, one)),
    ("instance_norm", (x, None, None, one, one)), ("switchable_norm", (x, logits, logits, one.copy(), one.copy(), one, one, True)),
    ("weight_norm", (x, g)), ("softmax", (row,)), ("log_softmax", (row,)), ("cross_entropy", (x[0], labels)), ("dropout", (row,)),
]
calls = [(getattr(fn, name + "_forward"), getattr(fn, name + "_backward"), arguments) for name, arguments in calls]
def small(rounds):
    for _ in range(rounds):
        for forward, backward, arguments in calls:
            y, ctx = forward(*arguments)
            backward(y, ctx)

runs = {"nothing": lambda: None, "f32": f32, "f64": lambda: alike(np.float64)}
runs |= {"few": lambda: small(20), "many": lambda: small(220)}
for name, run in runs.items():
    if (child := os.fork()) == 0:
        try:
            run()
        except BaseException as error:
            print("failed", error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print(name, child, flush=True)
"""
ELEMENTS, CHANNELS = 128 * 1024, 1024

# Instructions per element, by the kernels that share the work; behind each bound what gcc 12 gives.
BOUNDS_F32 = {
    ("moments",): 1.3,  # 1.03
    ("affine",): 1.05,  # 0.81
    ("grad_sums",): 1.55,  # 1.23
    ("grad_apply",): 1.55,  # 1.22
    ("col_sums", "col_look_add", "col_affine"): 2.4,  # 1.89
    ("col_grad_sums", "col_grad_apply"): 4.2,  # 3.34
    ("rows_forward", "rows_apply", "row_apply"): 2.9,  # 2.3
    ("some_grad_sums", "rows_grad"): 7.2,  # 5.8: rows 4 KB apart, two at a time
    ("row_max", "exps", "softmax", "softmax_next"): 6.2,  # 5.3
    ("softmax_grad",): 1.9,  # 1.57
    ("dropout", "dropout_grad", "keep"): 15.0,  # 12.2
}
BOUNDS_F64 = {
    ("moments",): 7.5,  # 6.0
    ("affine",): 1.95,  # 1.53
    ("grad_sums",): 7.8,  # 6.24
    ("grad_apply",): 2.95,  # 2.33
    ("col_sums", "col_look_add", "col_affine"): 12.0,  # 9.5
    ("col_grad_sums", "col_grad_apply"): 13.0,  # 10.4
    ("rows_forward", "rows_apply", "row_apply"): 11.0,  # 8.8
    ("some_grad_sums", "rows_grad"): 19.8,  # 15.8
    ("row_max", "exps", "softmax", "softmax_next"): 15.1,  # 13.0
    ("softmax_grad",): 4.9,  # 3.9
}
BOUNDS = [("f32", kernels, n) for kernels, n in BOUNDS_F32.items()] + [
    ("f64", kernels, n) for kernels, n in BOUNDS_F64.items()
]
PER_CHANNEL = 135  # 108: the loops down columns and the arithmetic on statistics, forward and backward, for 128 rows
PER_SPAN = 159  # 127: the loops over group norm's 512 channels, forward and backward, beside the kernels
PER_GROUP = 588  # 470: those kernels, for each channel of 64 halves
STATISTICS = set("means centre are_near finish multiply slopes accumulate collapse blend are_plain fold".split())

PER_SMALL_CALL = 15400  # 12300: forward or backward, in the mean, Python's own included


Counts = dict[tuple[str, str], int]  # instructions by function and object file


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What callgrind wrote of each run."""
    if shutil.which("valgrind") is None or shutil.which("callgrind_annotate") is None:
        pytest.skip("needs valgrind")
    if "avx2" not in core.available_isas():
        pytest.skip("the bounds are for AVX2")
    folder = tmp_path_factory.mktemp("callgrind")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "FASTNORM_ISA": "avx2",
        "FASTNORM_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/%p", sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "failed" not in done.stdout, done.stdout + done.stderr
    return {name: folder / child for name, child in map(str.split, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def runs(files: dict[str, Path]) -> dict[str, Counts]:
    before = counts_in(files["nothing"])
    found = {name: counts_in(files[name]) for name in ("f32", "f64")}
    return {name: {key: n - before.get(key, 0) for key, n in run.items()} for name, run in found.items()}


@pytest.fixture
def counts(runs: dict[str, Counts]) -> Counts:
    return runs["f32"]


def counts_in(file: Path) -> Counts:
    annotate = ["callgrind_annotate", "--threshold=100", str(file)]
    table = subprocess.run(annotate, capture_output=True, text=True, check=True).stdout
    line = re.compile(r"^ *([\d,]+) \([^)]*\) +\S*?:(\S+) \[(\S+)\]$")
    found: Counts = {}
    for m in filter(None, map(line.match, table.splitlines())):
        key = m[2], Path(m[3]).name
        found[key] = found.get(key, 0) + int(m[1].replace(",", ""))
    return found


@pytest.mark.parametrize(("dtype", "kernels", "bound"), BOUNDS, ids=[f"{d}-{' '.join(k)}" for d, k, _ in BOUNDS])
def test_instructions_per_element(dtype: str, kernels: tuple[str, ...], bound: float, runs: dict[str, Counts]) -> None:
    own = {f"{kernel}_{dtype}" for kernel in kernels}
    total = sum(n for (function, _), n in runs[dtype].items() if function.split(".")[0] in own)
    assert 0 < total <= bound * ELEMENTS, f"{total / ELEMENTS:.2f} instructions per element"


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_no_kernel_works_beyond_the_bounds(dtype: str, runs: dict[str, Counts]) -> None:
    """Work that moves to a function of another name takes its bound along."""
    bounded = {f"{kernel}_{dtype}" for d, kernels, _ in BOUNDS for kernel in kernels if d == dtype}
    work = {function.split(".")[0]: n for (function, _), n in runs[dtype].items()}
    assert bounded & set(work)
    assert not [f for f, n in work.items() if f.endswith(f"_{dtype}") and f not in bounded and n > ELEMENTS / 10]


def test_instructions_per_channel(counts: Counts) -> None:
    own = {f"fn_{function}" for function in STATISTICS}
    total = sum(
        n for (function, file), n in counts.items() if file.startswith("columns.") or function.split(".")[0] in own
    )
    assert 0 < total <= PER_CHANNEL * CHANNELS, f"{total / CHANNELS:.0f} instructions per channel"


def test_instructions_per_span(counts: Counts) -> None:
    total = sum(n for (function, file), n in counts.items() if file.startswith("spans.") and "pymod" not in function)
    assert 0 < total <= PER_SPAN * 512, f"{total / 512:.0f} instructions per channel"


def test_instructions_per_channel_of_a_group(counts: Counts) -> None:
    own = {f"group_{kernel}_f16" for kernel in ("affine", "grad_sums", "grad_apply")}
    total = sum(n for (function, _), n in counts.items() if function.split(".")[0] in own)
    assert 0 < total <= PER_GROUP * 512, f"{total / 512:.0f} instructions per channel"


def test_one_thread_opens_no_parallel_region(counts: Counts) -> None:
    """A region of one thread costs a team and a system call, as much as a small call takes."""
    assert not [
        function
        for (function, _), n in counts.items()
        if n and ("GOMP_parallel" in function or "kmpc_fork" in function)
    ]


def test_instructions_of_a_small_call(files: dict[str, Path]) -> None:
    """Checks, contexts and results of arrays so small that arithmetic hardly counts: the difference of two runs."""
    few, many = (re.search(r"^totals: (\d+)$", files[run].read_text(), re.MULTILINE) for run in ("few", "many"))
    assert few and many
    per_call = (int(many[1]) - int(few[1])) / 200 / 24
    assert 0 < per_call <= PER_SMALL_CALL, f"{per_call:.0f} instructions per call"
