"""Control: threads, instruction sets, what the environment says, and what `show_config` tells of it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

import fastnorm as fn
from fastnorm._kernels import core

REPORT = """
import hashlib, numpy as np, fastnorm as fn
from fastnorm._kernels import core
x = (np.arange(300000, dtype=np.float32) % 977).reshape(3, 10, 10000)
y, ctx = fn.batch_norm_forward(x, training=True)
dx = fn.batch_norm_backward(x, ctx).dx
print(core.isa(), fn.get_num_threads(), hashlib.sha256(y.tobytes() + dx.tobytes()).hexdigest())
"""


def run(script: str = REPORT, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter with these variables set, or (None) removed."""
    unset = ("FASTNORM_ISA", "FASTNORM_NUM_THREADS", "OMP_NUM_THREADS")
    env = {k: v for k, v in os.environ.items() if k not in unset}
    env |= {k: v for k, v in environment.items() if v is not None}
    env["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60)


def report(**environment: str) -> list[str]:
    done = run(**environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def expected_digest() -> str:
    x = (np.arange(300000, dtype=np.float32) % 977).reshape(3, 10, 10000)
    y, ctx = fn.batch_norm_forward(x, training=True)
    return hashlib.sha256(y.tobytes() + fn.batch_norm_backward(x, ctx).dx.tobytes()).hexdigest()


# ------------------------------------------------------------------------------------------------------- the environment


@pytest.mark.parametrize("isa", core.available_isas())
def test_fastnorm_isa(isa: str) -> None:
    """The named instruction set is used, and gives the bits of the widest."""
    used, _, digest = report(FASTNORM_ISA=isa)
    assert used == isa and digest == expected_digest()


def test_the_fastest_instruction_set_is_the_default() -> None:
    """The widest; of AVX-512's two the narrower is faster on some processors."""
    best = core.best_isa()
    assert best == core.available_isas()[-1] or (best == "avx512" and best == core.available_isas()[-2])
    assert report()[0] == best
    assert report(FASTNORM_ISA="")[0] == best


@pytest.mark.parametrize("isa", ["avx1024", "AVX2 ", "sse", "0"])
def test_an_unknown_instruction_set_is_an_error(isa: str) -> None:
    done = run(FASTNORM_ISA=isa)
    assert done.returncode != 0 and "FASTNORM_ISA" in done.stderr and repr(isa) in done.stderr
    assert "baseline" in done.stderr, "names what is available"


def test_an_instruction_set_that_this_machine_lacks_is_an_error() -> None:
    for isa in {"avx2", "avx512", "avx512_wide", "neon"} - set(core.available_isas()):
        done = run(FASTNORM_ISA=isa)
        assert done.returncode != 0 and "FASTNORM_ISA" in done.stderr


@pytest.mark.parametrize("n", ["1", "3"])
def test_fastnorm_num_threads(n: str) -> None:
    _, threads, digest = report(FASTNORM_NUM_THREADS=n)
    assert threads == (n if core.have_openmp() else "1") and digest == expected_digest()
    assert report(FASTNORM_NUM_THREADS=n, OMP_NUM_THREADS="2")[1] == threads, "the package's own variable wins"


@pytest.mark.parametrize("n", ["0", "-1", "two", "1.5", "1e3"])
def test_a_wrong_number_of_threads_is_an_error(n: str) -> None:
    done = run(FASTNORM_NUM_THREADS=n)
    assert done.returncode != 0 and "FASTNORM_NUM_THREADS" in done.stderr and repr(n) in done.stderr


def test_default_threads() -> None:
    """The CPUs that this process may use, never more than OMP_NUM_THREADS says."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    default = cpus if core.have_openmp() else 1
    assert int(report()[1]) == default
    assert int(report(OMP_NUM_THREADS="1")[1]) == 1
    assert int(report(OMP_NUM_THREADS="1000")[1]) == default
    assert int(report(OMP_NUM_THREADS="1,2")[1]) == 1
    assert int(report(OMP_NUM_THREADS="nonsense")[1]) == default


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_a_process_bound_to_one_cpu_uses_one_thread() -> None:
    done = run("import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n" + REPORT)
    assert done.stdout.split()[1] == "1", done.stderr


# ----------------------------------------------------------------------------------------------------------- in a process


def test_set_and_get(n_threads: int) -> None:
    assert fn.get_num_threads() == (n_threads if core.have_openmp() else 1)


def test_threads_are_restored() -> None:
    """`with threads(n)` restores the number, after an exception too, and nests."""
    before = fn.get_num_threads()
    with fn.threads(1):
        assert fn.get_num_threads() == 1
        with fn.threads(3):
            assert fn.get_num_threads() == (3 if core.have_openmp() else 1)
        assert fn.get_num_threads() == 1
    assert fn.get_num_threads() == before
    with pytest.raises(KeyError), fn.threads(1):
        raise KeyError
    assert fn.get_num_threads() == before


@pytest.mark.parametrize("n", [0, -1, 10**6, 1.0, "2", None, True])
def test_wrong_numbers_of_threads(n: Any) -> None:
    before = fn.get_num_threads()
    for f in (fn.set_num_threads, lambda n: fn.threads(n).__enter__()):
        with pytest.raises((ValueError, TypeError), match=r"\bn\b"):
            f(n)
    assert fn.get_num_threads() == before


def test_numpy_integers_are_numbers_of_threads() -> None:
    before = fn.get_num_threads()
    fn.set_num_threads(np.int64(1))
    assert fn.get_num_threads() == 1
    fn.set_num_threads(before)


def test_set_isa(isa: str) -> None:
    assert core.isa() == isa == fn.config()["isa"]


@pytest.mark.parametrize("name", ["", "avx1024", "AVX2", None, 3])
def test_wrong_instruction_sets(name: Any) -> None:
    before = core.isa()
    with pytest.raises(ValueError, match="isa.*baseline"):
        core.set_isa(name)
    assert core.isa() == before


def test_the_limit_holds_in_every_python_thread() -> None:
    before = fn.get_num_threads()
    seen: list[int] = []
    with fn.threads(1):
        thread = threading.Thread(target=lambda: seen.append(fn.get_num_threads()))
        thread.start()
        thread.join()
    assert seen == [1] and fn.get_num_threads() == before


def test_results_do_not_depend_on_the_machine(isa: str, n_threads: int) -> None:
    """Forced in the process as from the environment: one digest."""
    before = core.isa()
    core.set_isa(core.available_isas()[-1])
    with fn.threads(1):
        expected = expected_digest()
    core.set_isa(before)
    assert core.isa() == isa and expected_digest() == expected


# ------------------------------------------------------------------------------------------------------------ show_config


def test_show_config(capsys: pytest.CaptureFixture[str]) -> None:
    """Version, instruction sets in use and available, threads, compiler, and how each was chosen."""
    fn.show_config()
    text, c = capsys.readouterr().out, fn.config()
    assert fn.__version__ == c["version"] and c["version"] in text
    assert c["isa"] == core.isa() and c["isa"] in text and c["isa_chosen_by"] in text
    assert c["isa_available"] == core.available_isas() and all(isa in text for isa in c["isa_available"])
    assert c["threads"] == fn.get_num_threads() and str(c["threads"]) in text and c["threads_chosen_by"] in text
    assert c["compiler"] and c["compiler"] in text


def test_show_config_says_how_things_were_chosen() -> None:
    script = "import fastnorm as fn; fn.show_config()"
    text = run(script, FASTNORM_ISA="baseline", FASTNORM_NUM_THREADS="2").stdout
    assert "FASTNORM_ISA" in text and ("FASTNORM_NUM_THREADS" in text or not core.have_openmp())
    text = run(script, OMP_NUM_THREADS="1").stdout
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert "OMP_NUM_THREADS" in text or not core.have_openmp() or cpus == 1
    assert "FASTNORM_ISA" not in text
