"""Group normalization (Wu and He 2018, arXiv:1803.08494) and instance normalization (Ulyanov, Vedaldi and Lempitsky 2016,
arXiv:1607.08022), which is group norm with one channel per group."""
cimport numpy as cnp

from fastnorm._kernels.job cimport element_count, statistic_size
from fastnorm.functional._channels cimport (
    ChannelContext, check_out, check_running, give_back, prepare, run, update_running, use_running,
)

cnp.import_array()

__all__ = [
    "group_norm", "group_norm_backward", "group_norm_forward",
    "instance_norm", "instance_norm_backward", "instance_norm_forward",
]


cdef tuple group_forward(object x, object num_groups, object weight, object bias, object eps, object axis,
                         object activation, object out, bint keep):
    if num_groups is None:
        raise TypeError("num_groups: expected an integer, got NoneType")
    cdef ChannelContext ctx = prepare("group_norm", x, axis, num_groups, weight, bias, eps, activation, None)
    check_out(out, weight, bias, None, None)
    return run(ctx, out, keep), ctx


def group_norm(x, num_groups, weight=None, bias=None, eps=1e-5, *, axis=1, activation=None, out=None):
    """y = act((x - mean) / sqrt(var + eps) · weight + bias), one mean and variance per sample and group of channels.

    The C channels fall into num_groups groups of C/num_groups neighbours; mean and variance are taken over a group's
    channels and all of space. Wu and He 2018, arXiv:1803.08494.

    Parameters
    ----------
    x : array (N, C, ...), float32, float64, float16 or bfloat16
        Samples on axis 0. Channels-first and channels-last memory is used in place; other views are copied once.
    num_groups : int
        A divisor of C. 1 group is layer norm over (C, ...) with parameters per channel; C groups are instance norm.
    weight, bias : array (C,), optional
        gamma and beta: x's dtype, or float32 with half types.
    eps : float
        ≥ 0 and finite.
    axis : int
        The channel axis, not 0; -1 for channels-last arrays.
    activation : None or "relu"
    out : array of x's shape, dtype and layout, optional
        x itself is allowed.

    Returns
    -------
    y : array of x's shape, dtype and layout
        float32 within 4 ULP at the scale |gamma·xhat| + |beta|; a sample's result does not depend on the others, nor its bits
        on threads or instruction set.

    Raises
    ------
    TypeError, ValueError
        Before anything is written.
    """
    return group_forward(x, num_groups, weight, bias, eps, axis, activation, out, False)[0]


def group_norm_forward(x, num_groups, weight=None, bias=None, eps=1e-5, *, axis=1, activation=None, out=None):
    """(y, ctx): `group_norm`, and what `group_norm_backward` needs: a reference to x, which must not change before the
    backward, and mean and rstd of each group (ctx.mean, ctx.rstd, float64, shape (N, num_groups)). out must not overlap x."""
    return group_forward(x, num_groups, weight, bias, eps, axis, activation, out, True)


def group_norm_backward(dy, ctx, *, out=None):
    """dx = rstd·(g - Σg/m - xhat·Σ(g·xhat)/m) with g = dy·weight; dweight = Σdy·xhat, dbias = Σdy.

    The sums in dx run over the m elements of a group, those of the parameters over samples and space.

    Parameters
    ----------
    dy : array of x's shape and dtype
    ctx
        From `group_norm_forward`.
    out : array of x's shape, dtype and layout, optional
        Receives dx; dy itself is allowed.

    Returns
    -------
    (dx, dweight, dbias) : named tuple
        dweight, dbias are float32 (float64 for float64 x), None where the parameter was None.

    Raises
    ------
    TypeError, ValueError
        For a dy or out that does not match x, or a ctx of another function.
    """
    if type(ctx) is not ChannelContext or (<ChannelContext> ctx).op != "group_norm":
        raise TypeError(f"ctx: expected the context of group_norm_forward, got {ctx!r}")
    return give_back(<ChannelContext> ctx, dy, out)


cdef tuple instance_forward(object x, object running_mean, object running_var, object weight, object bias,
                            bint use_input_stats, object momentum, object eps, object axis, object activation, object out,
                            bint keep):
    cdef ChannelContext ctx
    cdef double step, size
    # Running statistics belong to channels and are the same for every sample: that is batch norm in evaluation.
    ctx = prepare("instance_norm", x, axis, 0 if use_input_stats else None, weight, bias, eps, activation, None)
    step = check_running(ctx, running_mean, running_var, momentum, use_input_stats)
    size = statistic_size(&ctx.job)
    if use_input_stats and size == 1 and element_count(&ctx.job) > 0:
        raise ValueError(f"x: expected more than 1 spatial element when use_input_stats, got shape {x.shape}")
    check_out(out, weight, bias, running_mean, running_var)
    if not use_input_stats:
        use_running(ctx, running_mean, running_var)
    y = run(ctx, out, keep)
    if use_input_stats and running_mean is not None and element_count(&ctx.job) > 0:
        update_running(running_mean, step, ctx.job.mean, ctx.job.n, ctx.job.c, 1)
        update_running(running_var, step, ctx.job.var, ctx.job.n, ctx.job.c, size / (size - 1))
    return y, ctx


def instance_norm(x, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1,
                  eps=1e-5, *, axis=1, activation=None, out=None):
    """y = act((x - mean) / sqrt(var + eps) · weight + bias), one mean and variance per sample and channel, over space.

    With use_input_stats, running statistics, where given, are updated in place: running ← (1 - momentum)·running +
    momentum·(mean over the samples of the means, and of the unbiased variances). Without, they take the place of the
    input's own. Ulyanov, Vedaldi and Lempitsky 2016, arXiv:1607.08022, equation 2.

    Parameters
    ----------
    x : array (N, C, ...), float32, float64, float16 or bfloat16
        Samples on axis 0. Channels-first and channels-last memory is used in place; other views are copied once.
    running_mean, running_var, weight, bias : array (C,), optional
        x's dtype, or float32 with half types.
    use_input_stats : bool
    momentum, eps : float
        0 ≤ momentum ≤ 1; eps ≥ 0 and finite.
    axis : int
        The channel axis, not 0; -1 for channels-last arrays.
    activation : None or "relu"
    out : array of x's shape, dtype and layout, optional
        x itself is allowed.

    Returns
    -------
    y : array of x's shape, dtype and layout
        float32 within 4 ULP at the scale |gamma·xhat| + |beta|; a sample's result does not depend on the others.

    Raises
    ------
    TypeError, ValueError
        Before anything is written; also for a single spatial element when use_input_stats.
    """
    return instance_forward(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps, axis, activation,
                            out, False)[0]


def instance_norm_forward(x, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1,
                          eps=1e-5, *, axis=1, activation=None, out=None):
    """(y, ctx): `instance_norm`, and what `instance_norm_backward` needs: a reference to x, which must not change before the
    backward, and the statistics (ctx.mean, ctx.rstd, float64). out must not overlap x."""
    return instance_forward(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps, axis, activation,
                            out, True)


def instance_norm_backward(dy, ctx, *, out=None):
    """dx = weight·rstd·(dy - Σdy/m - xhat·Σ(dy·xhat)/m); dweight = Σdy·xhat, dbias = Σdy.

    The sums in dx run over space, those of the parameters over samples and space. When the forward used running statistics
    they are constants: dx = weight·rstd·dy.

    Parameters
    ----------
    dy : array of x's shape and dtype
    ctx
        From `instance_norm_forward`.
    out : array of x's shape, dtype and layout, optional
        Receives dx; dy itself is allowed.

    Returns
    -------
    (dx, dweight, dbias) : named tuple
        dweight, dbias are float32 (float64 for float64 x), None where the parameter was None.

    Raises
    ------
    TypeError, ValueError
        For a dy or out that does not match x, or a ctx of another function.
    """
    if type(ctx) is not ChannelContext or (<ChannelContext> ctx).op != "instance_norm":
        raise TypeError(f"ctx: expected the context of instance_norm_forward, got {ctx!r}")
    return give_back(<ChannelContext> ctx, dy, out)
