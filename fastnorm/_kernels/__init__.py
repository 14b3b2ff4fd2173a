"""The Cython storey: how a tensor is cut into blocks, scheduled on threads and merged. Private; use `fastnorm.functional`."""

import os

# GNU OpenMP's threads wait for work by spinning, by default for milliseconds. Where something else spins too, as BLAS's own
# threads do between a training loop's matrix products, the thread that is waited for then cannot run: on two cores the batch
# norms of a training step took 39 ms, and 0.8 ms under OMP_WAIT_POLICY=passive. Unless the user has a wish, they do not spin. The
# library reads this when it is loaded, by the import below, and it is left to nobody else.
_wish = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ)
if not _wish:
    os.environ["GOMP_SPINCOUNT"] = "0"
try:
    from fastnorm._kernels import core
finally:
    if not _wish:
        os.environ.pop("GOMP_SPINCOUNT", None)

__all__ = ["core"]
