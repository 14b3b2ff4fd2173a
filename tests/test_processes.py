"""Promise 5, around the calls: threads, forks, interrupts, little memory and small stacks leave no half-done state and no crash.

Method: real threads and signals, in a fresh interpreter wherever a failure would take this one along.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import threading
from typing import Any

import numpy as np
import pytest
from support import OPERATIONS, draw, paths, same_bits

import fastnorm as fn


def python(script: str, **environment: str) -> str:
    """The last line that a fresh interpreter prints."""
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@paths()
def test_several_python_threads(path: str, rng: np.random.Generator) -> None:
    """Four at a time on distinct outputs give the bits of one."""
    call = OPERATIONS[path].call(rng, "float32", large=True)
    dy = call.upstream(rng)
    expected = call.results(dy)
    found: list[Any] = [None] * 4

    def work(i: int) -> None:
        found[i] = [call.results(dy) for _ in range(2)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for results in found:
        assert results is not None, "a thread failed"
        for one in results:
            for name, value in one.items():
                same_bits(value, expected[name], name)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_after_use() -> None:
    """The child works, on one thread until it sets more, and gets the parent's bits; so does its own child."""
    script = """
        import os, signal, numpy as np, fastnorm as fn
        signal.alarm(10)
        fn.set_num_threads(2)
        most = fn.get_num_threads()  # 1 without OpenMP
        x = np.random.default_rng(0).standard_normal((8, 16, 4096)).astype(np.float32)
        def work():
            y, ctx = fn.batch_norm_forward(x, training=True)
            return (y.tobytes(), fn.batch_norm_backward(x, ctx).dx.tobytes(), fn.layer_norm(x, 4096).tobytes())
        parent = work()
        def child(depth):
            pid = os.fork()
            if pid == 0:
                signal.alarm(10)
                ok = fn.get_num_threads() == 1 and work() == parent
                fn.set_num_threads(2)
                ok = ok and fn.get_num_threads() == most and work() == parent and (depth == 0 or child(depth - 1) == 0)
                os._exit(0 if ok else 1)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert child(1) == 0
        assert fn.get_num_threads() == most and work() == parent
        print("ok")
    """
    assert python(script) == "ok"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers")
def test_keyboard_interrupt_between_calls(rng: np.random.Generator) -> None:
    """A Ctrl-C during a loop of calls ends the loop; running statistics are those of a whole number of calls."""
    x = draw(rng, (8, 16, 4096), np.float32)
    y = np.empty_like(x)
    fn.batch_norm(x, *(reference := [np.zeros(16, np.float32), np.ones(16, np.float32)]), training=True)
    running = [np.zeros(16, np.float32), np.ones(16, np.float32)]
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    calls = 0
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            while True:
                fn.batch_norm(x, *running, training=True, out=y)
                calls += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    expected = []
    replay = [np.zeros(16, np.float32), np.ones(16, np.float32)]
    for _ in range(calls + 2):
        expected.append([a.tobytes() for a in replay])
        fn.batch_norm(x, *replay, training=True, out=y)
    assert [a.tobytes() for a in running] in expected[calls : calls + 2]
    assert reference[0].any()


def test_the_gil_is_released(rng: np.random.Generator) -> None:
    """Another Python thread runs while a kernel works: it counts during calls that take long enough to notice."""
    x = draw(rng, (64, 1 << 18), np.float32)
    out = np.empty_like(x)
    done, ticks = threading.Event(), []

    def watch() -> None:
        while not done.is_set():
            ticks.append(1)
            done.wait(1e-4)

    watcher = threading.Thread(target=watch)
    before = fn.get_num_threads()
    fn.set_num_threads(1)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e3)  # no thread is asked to let go of the lock: it must be given up by the call itself
    try:
        watcher.start()
        for _ in range(20):
            fn.layer_norm(x, 1 << 18, out=out)
    finally:
        done.set()
        sys.setswitchinterval(interval)
        fn.set_num_threads(before)
        watcher.join()
    assert len(ticks) > 5


def test_short_rows_take_little_stack() -> None:
    """Softmax on a thread of 64 KB: what waits for a sum beside the output has room only where it needs some."""
    script = """
        import threading
        import numpy as np
        import fastnorm as fn
        x = np.arange(24.0).reshape(2, 3, 4)
        calls = [lambda: fn.softmax(x), lambda: fn.log_softmax(x)]
        for call in calls:
            call()
        threading.stack_size(1 << 16)
        for call in calls:
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
        print("done")
    """
    assert python(script) == "done"


def has_libgomp() -> bool:
    try:
        return bool(ctypes.CDLL("libgomp.so.1"))
    except OSError:
        return False


@pytest.mark.skipif(not has_libgomp(), reason="needs gcc's OpenMP library, in whose team the test calls")
def test_parallel_regions_of_others() -> None:
    """Called by each thread of another library's OpenMP team, whose numbers are not ours: no thread takes another's memory."""
    script = """
        import ctypes
        import numpy as np
        import fastnorm as fn
        rng = np.random.default_rng(0)
        x, wide = rng.standard_normal((64, 1000)).astype("f2"), rng.standard_normal((64, 256)).astype("f4")
        def results():
            y, ctx = fn.batch_norm_forward(wide, None, None, training=True)
            return fn.softmax(x), y, fn.batch_norm_backward(wide, ctx).dx
        expected, wrong = results(), []
        @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        def work(_):
            for _ in range(20):
                if not all(np.array_equal(a, b) for a, b in zip(results(), expected)):
                    wrong.append(1)
        fn.set_num_threads(1)
        gomp = ctypes.CDLL("libgomp.so.1")
        for team in (2, 8, 100):
            gomp.GOMP_parallel(work, None, ctypes.c_uint(team), ctypes.c_uint(0))
        print(len(wrong))
    """
    assert python(script) == "0"


def test_no_memory_leaves_running_statistics_alone() -> None:
    """An output that cannot be allocated: MemoryError, and neither running statistic has moved."""
    resource = pytest.importorskip("resource")
    assert resource.RLIMIT_AS
    script = """
        import resource, numpy as np, fastnorm as fn
        x = np.zeros((64, 1 << 20), np.float32); x[::2] = 1
        running = np.zeros(64, np.float32), np.ones(64, np.float32)
        fn.instance_norm(x[:, None, :4])
        with open("/proc/self/statm") as f:
            now = int(f.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + (64 << 20), resource.RLIM_INFINITY))
        for name, args in (("batch_norm", (x.T, *running, None, None, True)), ("instance_norm", (x[None], *running))):
            try:
                getattr(fn, name)(*args)
            except MemoryError:
                pass
            else:
                raise SystemExit(f"{name}: no MemoryError")
            assert not running[0].any() and (running[1] == 1).all(), name
        print("ok")
    """
    assert python(script) == "ok"
