"""Promise 2 across releases: the bits of every function, forward and backward, are those pinned in digests.txt.

A change of bits is a decision: `python tests/digests.py --write` pins the new ones, and the changelog says why.
"""

from __future__ import annotations

import digests
import support

PINNED = digests.pinned()


@support.every_dtype
@support.paths()
def test_bits_of_this_release(path: str, dtype: str) -> None:
    found = [digests.digest(path, dtype, large) for large in (False, True)]
    assert found == PINNED[path, dtype]


def test_every_operation_is_pinned() -> None:
    assert set(PINNED) == {(path, dtype) for path in support.OPERATIONS for dtype in support.DTYPES}
