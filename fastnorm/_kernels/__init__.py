"""The Cython storey: how a tensor is cut into blocks, scheduled on threads and merged. Private; use `fastnorm.functional`."""

import os

# GNU OpenMP's threads wait for work by spinning, by default for milliseconds. On a busy machine the thread that is waited for
# then cannot run: a batch norm of 0.1 ms was seen to take 40. Unless the user has a wish, they spin for some 20 µs and sleep.
# Read when the library is loaded, by the import below, and left to nobody else.
_wish = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ)
if not _wish:
    os.environ["GOMP_SPINCOUNT"] = "10000"
try:
    from fastnorm._kernels import core
finally:
    if not _wish:
        os.environ.pop("GOMP_SPINCOUNT", None)

__all__ = ["core"]
