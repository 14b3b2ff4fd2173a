"""What batch, group and instance norm share: arguments into a Job, one call of the kernel, results out.

Design. `prepare` checks everything and writes nothing; `run` allocates y and calls the forward; `give_back` the backward.
Parameters and statistics are a few doubles per channel and live in one block of memory that the context owns.
"""
cimport numpy as cnp
import numpy as np
from libc.math cimport NAN
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from fastnorm._kernels.c cimport FN_RELU
from fastnorm._kernels.core cimport fresh, memory_flags, ops_for
from fastnorm._kernels.job cimport element_count, statistic_count
from fastnorm._kernels.norm cimport norm_backward, norm_forward
from fastnorm.functional._check cimport (
    Layout, activation_of, apart, axis_of, countable, dense, dtype_of, eps_of, fetch, fraction_of, layout_of, like, named, output,
    overlap, parameter, vector,
)
from fastnorm._types import NormGrads, ResidualNormGrads

cnp.import_array()


cdef class ChannelContext:
    """What a backward needs. `mean`, `var`, `rstd`: float64 arrays, one number per statistic."""

    def __dealloc__(self):
        free(self.memory)

    def __repr__(self):
        return f"<fastnorm {self.op} context, x of shape {self.x.shape}>"

    cdef int reserve(self) except -1:
        """Memory for gamma, beta and the statistics: the only thing of theirs that is kept."""
        cdef Py_ssize_t count = statistic_count(&self.job), c = self.job.c
        countable(count, self.op)
        countable(c, self.op)
        self.memory = <double *> malloc((2 * c + 4 * count + 1) * sizeof(double))
        if self.memory == NULL:
            raise MemoryError(f"{self.op}: no memory for the statistics")
        self.job.mean = self.memory + 2 * c
        self.job.mean_lo = self.job.mean + count
        self.job.var = self.job.mean_lo + count
        self.job.rstd = self.job.var + count
        return 0

    cdef object statistic(self, const double *values):
        cdef Py_ssize_t i, count = statistic_count(&self.job)
        a = np.empty(count)
        cdef double[::1] view = a
        for i in range(count):
            view[i] = values[i]
        return a if self.job.groups == 0 else a.reshape(-1, self.job.groups)

    @property
    def mean(self):
        """The mean that was subtracted: shape (C,), or (N, groups)."""
        return self.statistic(self.job.mean)

    @property
    def var(self):
        """The biased variance that was divided by, without eps."""
        return self.statistic(self.job.var)

    @property
    def rstd(self):
        """1/sqrt(var + eps)."""
        return self.statistic(self.job.rstd)


cdef ChannelContext prepare(str op, object x, object axis, object groups, object weight, object bias, object eps,
                            object activation, object residual):
    """Checked arguments as a context whose job lacks only y. groups None: a statistic per channel, over all samples; only
    group norm looks at its value, the others take one channel per group."""
    cdef ChannelContext ctx = ChannelContext.__new__(ChannelContext)
    cdef Layout at
    cdef int ndim, ax, apart_samples = groups is not None
    cdef Py_ssize_t g = 0
    ctx.op = op
    ctx.dtype = dtype_of(x, "x")
    ndim = cnp.PyArray_NDIM(x)
    if ndim < 2:
        raise ValueError(f"x: expected at least 2 axes (samples and channels), got shape {x.shape}")
    ax = 1 if type(axis) is int and <object> axis == 1 else axis_of(axis, ndim, "axis")
    if ax == 0 and op != "batch_norm":
        raise ValueError("axis: expected the channel axis, which cannot be axis 0, the samples")
    ctx.job.eps = eps_of(eps)
    if activation_of(activation):
        ctx.job.flags = FN_RELU
    ctx.x = x
    ctx._x = dense(x, apart_samples)
    at = layout_of(ctx._x, ax, apart_samples)
    if apart_samples:
        if op == "group_norm":
            if isinstance(groups, bool) or not hasattr(groups, "__index__"):
                raise TypeError(f"num_groups: expected an integer, got {type(groups).__name__}")
            if not 1 <= groups.__index__() <= max(at.c, 1) or at.c % groups.__index__():
                raise ValueError(f"num_groups: expected a divisor of the {at.c} channels, got {groups}")
            g = groups.__index__()
        else:
            g = at.c
    if weight is not None:
        parameter(weight, "weight", at.c, ctx.dtype)
    if bias is not None:
        parameter(bias, "bias", at.c, ctx.dtype)
    if residual is not None:
        ctx.residual = residual
        ctx._residual = like(residual, "residual", ctx._x, ctx.dtype)
    ctx.job.ops = ops_for(ctx.dtype)
    ctx.job.n, ctx.job.pre, ctx.job.c, ctx.job.post, ctx.job.groups = at.n, at.pre, at.c, at.post, g
    ctx.reserve()
    if weight is not None:
        ctx.has_weight = True
        fetch(weight, parameter(weight, "weight", at.c, ctx.dtype), ctx.memory)
        ctx.job.gamma = ctx.memory
    if bias is not None:
        ctx.has_bias = True
        fetch(bias, parameter(bias, "bias", at.c, ctx.dtype), ctx.memory + at.c)
        ctx.job.beta = ctx.memory + at.c
    ctx.job.x = <const char *> cnp.PyArray_DATA(ctx._x)
    ctx.job.residual = <const char *> cnp.PyArray_DATA(ctx._residual) if residual is not None else NULL
    return ctx


cdef object run(ChannelContext ctx, object out, bint keep):
    """The forward; keep: its context will be used by a backward, so out must leave x and residual alone."""
    cdef int failed = 0
    cdef Py_ssize_t i
    cdef Job job = ctx.job
    if out is not None:
        dtype_of(out, "out")
        apart(out, ctx.x, "x", not keep)
        apart(out, ctx.residual, "residual", not keep)
    y = output(out, ctx.x, ctx._x, ctx.dtype)
    if element_count(&job) > 0:
        job.y = <char *> cnp.PyArray_DATA(y)
        job.flags |= memory_flags(cnp.PyArray_NBYTES(y))
        with nogil:
            failed = norm_forward(&job)
        if failed:
            raise MemoryError(f"{ctx.op}: no memory for partial results")
    elif not job.given:
        for i in range(statistic_count(&job)):  # of no values
            job.mean[i] = job.mean_lo[i] = job.var[i] = job.rstd[i] = NAN
    if out is not None and out is not y:
        np.copyto(out, y)
        return out
    return y


cdef object give_back(ChannelContext ctx, object dy, object out):
    """The backward."""
    cdef int failed = 0
    cdef Job job = ctx.job
    cdef Py_ssize_t c = job.c, i
    cdef cnp.ndarray g = like(dy, "dy", ctx._x, ctx.dtype)
    if out is not None:
        dtype_of(out, "out")
        apart(out, ctx.x, "x", False)
        apart(out, ctx.residual, "residual", False)
        apart(out, dy, "dy", True)
    dx = output(out, ctx.x, ctx._x, ctx.dtype)
    dresidual = None
    if ctx.residual is not None:
        # Without a ReLU in between the residual's gradient is dy itself.
        dresidual = fresh(ctx._x) if job.flags & FN_RELU else dy
        if dresidual is dy and out is not None and overlap(out, dy):
            raise ValueError("out: overlaps dy, which is also the gradient of residual; give an array of its own")
    cdef double *sums = <double *> malloc((2 * c + 1) * sizeof(double))
    if sums == NULL:
        raise MemoryError(f"{ctx.op}: no memory for the gradients")
    try:
        for i in range(2 * c):
            sums[i] = 0
        job.dgamma, job.dbeta = sums, sums + c
        if element_count(&job) > 0:
            job.dy = <const char *> cnp.PyArray_DATA(g)
            job.y = <char *> cnp.PyArray_DATA(dx)
            if dresidual is not None and dresidual is not dy:
                job.dresidual = <char *> cnp.PyArray_DATA(dresidual)
            job.flags |= memory_flags(cnp.PyArray_NBYTES(dx))
            with nogil:
                failed = norm_backward(&job)
            if failed:
                raise MemoryError(f"{ctx.op}: no memory for partial results")
        dweight = vector(sums, c, ctx.dtype) if ctx.has_weight else None
        dbias = vector(sums + c, c, ctx.dtype) if ctx.has_bias else None
    finally:
        free(sums)
    if out is not None and out is not dx:
        np.copyto(out, dx)
        dx = out
    if dresidual is None:
        return named(NormGrads, (dx, dweight, dbias))
    return named(ResidualNormGrads, (dx, dweight, dbias, dresidual))


# ---- running statistics ----

cdef int check_statistic(object a, str name, ChannelContext ctx, bint updated) except -1:
    parameter(a, name, ctx.job.c, ctx.dtype)
    if updated and not cnp.PyArray_ISWRITEABLE(a):
        raise ValueError(f"{name}: expected a writable array, because it is updated, got a read-only one")
    return 0


cdef double check_running(ChannelContext ctx, object running_mean, object running_var, object momentum,
                          bint updated) except? -1:
    """The momentum; updated: the statistics are about to be written, else they are about to be used."""
    if momentum is None:
        raise ValueError("momentum: expected a number from 0 to 1, got None; a cumulative average needs a counter, which "
                         "the layers of fastnorm.nn keep: pass 1/num_batches_tracked")
    cdef double step = fraction_of(momentum, "momentum")
    if (running_mean is None) != (running_var is None):
        missing, present = ("running_mean", "running_var") if running_mean is None else ("running_var", "running_mean")
        raise ValueError(f"{missing}: expected an array beside {present}, got None")
    if running_mean is None:
        if not updated:
            raise ValueError("running_mean: expected an array, because the batch's own statistics are not used, got None")
        return step
    check_statistic(running_mean, "running_mean", ctx, updated)
    check_statistic(running_var, "running_var", ctx, updated)
    if updated and overlap(running_mean, running_var):
        raise ValueError("running_var: expected an array of its own, got one that overlaps running_mean")
    return step


cdef int use_running(ChannelContext ctx, object running_mean, object running_var) except -1:
    """Given statistics are constants: y = (x - running_mean)·gamma/sqrt(running_var + eps) + beta."""
    cdef Job *job = &ctx.job
    job.given = 1
    fetch(running_mean, dtype_of(running_mean, "running_mean"), job.mean)
    fetch(running_var, dtype_of(running_var, "running_var"), job.var)
    memset(job.mean_lo, 0, job.c * sizeof(double))
    job.ops.channels.finish(job.var, 1, job.eps, job.c, job.var, job.rstd)
    return 0


cdef int update_running(object running, double momentum, const double *batch, Py_ssize_t samples, Py_ssize_t c,
                        double factor) except -1:
    """running ← (1 - momentum)·running + momentum·factor·(mean over the samples of batch[sample, channel])."""
    cdef Py_ssize_t i, k
    cdef int code = dtype_of(running, "running")
    cdef double total
    cdef double *new = <double *> malloc((2 * c + 1) * sizeof(double))
    if new == NULL:
        raise MemoryError("no memory to update the running statistics")
    fetch(running, code, new)
    if samples > 1:
        for k in range(c):
            total = 0
            for i in range(samples):
                total += batch[i * c + k]
            new[c + k] = total / samples
        batch = new + c
    ops_for(code).channels.blend(new, momentum, factor, batch, c)
    ops_for(code).put(new, c, cnp.PyArray_DATA(running), cnp.PyArray_STRIDE(running, 0))
    free(new)
    return 0


cdef int check_out(object out, object weight, object bias, object running_mean, object running_var) except -1:
    """Refuse an `out` that overlaps a parameter or a statistic."""
    if out is None:
        return 0
    dtype_of(out, "out")
    apart(out, weight, "weight", False)
    apart(out, bias, "bias", False)
    apart(out, running_mean, "running_mean", False)
    apart(out, running_var, "running_var", False)
    return 0
