"""The Cython storey: how a tensor is cut into blocks, scheduled on threads and merged. Private; use `fastnorm.functional`."""
