"""A command in a process of its own, and Ctrl-C for it once it is at work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """`python -m fastnorm ...`, with its stdout and stderr to be read.

    SIGINT is set back meanwhile: a shell starts background jobs with it ignored, and children, those of pytest too,
    inherit that; a handler they do not.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "fastnorm", *arguments],
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options},
        )
    finally:
        signal.signal(signal.SIGINT, before)


class Screen:
    """What a process has written to its terminal so far."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.seen = descriptor, b""
        os.set_blocking(descriptor, False)

    def text(self) -> str:
        try:
            while part := os.read(self.descriptor, 65536):
                self.seen += part
        except OSError:  # nothing more for now, or for good
            pass
        return self.seen.decode()


def start_on_terminal(*arguments: str) -> tuple[subprocess.Popen[str], Screen]:
    """The same with a terminal as its stderr, where progress is shown."""
    leader, follower = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
    process = start(*arguments, stderr=follower, env=environment)
    os.close(follower)
    return process, Screen(leader)


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 60.0) -> None:
    """Return once `ready()` holds; fail if the process ends before, or the time is over."""
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None:
            raise AssertionError(f"ended early with status {process.returncode}: {process.communicate()}")
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"not ready after {seconds:g} s: {process.communicate()}")
        time.sleep(0.02)


def interrupt(process: subprocess.Popen[str], seconds: float = 60.0) -> tuple[int, str]:
    """Ctrl-C; the exit status, and what stderr holds that nobody has read."""
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=seconds)
    return process.returncode, error
