# The types of _channels.pyx.

from typing import Any, final

from numpy import float64
from numpy.typing import NDArray

@final
class ChannelContext:
    @property
    def x(self) -> NDArray[Any]: ...
    @property
    def residual(self) -> NDArray[Any] | None: ...
    @property
    def op(self) -> str: ...
    @property
    def mean(self) -> NDArray[float64]: ...
    @property
    def var(self) -> NDArray[float64]: ...
    @property
    def rstd(self) -> NDArray[float64]: ...
