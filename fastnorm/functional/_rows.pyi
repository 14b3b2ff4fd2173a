# The types of _rows.pyx.

from typing import Any, final

from numpy import float64
from numpy.typing import NDArray

@final
class RowsContext:
    @property
    def x(self) -> NDArray[Any]: ...
    @property
    def weight(self) -> NDArray[Any] | None: ...
    @property
    def sum(self) -> NDArray[Any] | None: ...
    @property
    def op(self) -> str: ...
    @property
    def mean(self) -> NDArray[float64]: ...
    @property
    def rstd(self) -> NDArray[float64]: ...
