"""The version, from the installed metadata."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("fastnorm-kernels")
except PackageNotFoundError:  # run from a source tree
    __version__ = "0+unknown"
