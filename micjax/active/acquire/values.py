"""What a measurement is worth: pure functions of a predicted mean and standard deviation.

All of them are maximised, in logarithms where they would underflow. `best` is the best value so far
(of a noisy process: the best posterior mean). To minimise y, hand in -mean.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr, logsumexp, ndtr
from jax.scipy.stats import norm
from jaxtyping import Array, ArrayLike, Float, Int
from scipy.special import ndtr as ndtr_host

Values = Float[ArrayLike, "..."]
LOG_ROOT_2PI = 0.5 * math.log(2.0 * math.pi)  # a Python float: float32 stays float32
TAIL = -8.0  # below it the series of 18 terms is exact to rounding
_SERIES = np.cumprod([1.0, *(-(2.0 * k + 1.0) for k in range(1, 18))])  # (-1)^k (2k + 1)!!


def log_h(u: Values) -> Float[Array, "..."]:
    """log(phi(u) + u Phi(u)), to 1e-12 of itself in float64 for every u.

    phi + u Phi is phi (1 - t M(t)) with t = -u and the Mills ratio M, a difference which cancels;
    below u = -8 it is summed as 1/t^2 - 3/t^4 + 15/t^6 - ... (Ament et al. 2023, eq. 9, where a
    complementary error function of the same accuracy is assumed).
    """
    u = jnp.asarray(u)
    # where, not maximum or clip: at a tie these halve the derivative
    high = jnp.where(u > -1.0, u, -1.0)
    middle = jnp.where((u <= -1.0) & (u > TAIL), u, -1.0)
    low = jnp.where(u <= TAIL, u, TAIL)
    plain = jnp.log(norm.pdf(high) + high * ndtr(high))
    mills = jnp.exp(log_ndtr(middle) + 0.5 * middle**2 + LOG_ROOT_2PI)
    between = jnp.log1p(middle * mills) - 0.5 * middle**2 - LOG_ROOT_2PI
    square = low**-2
    series = jnp.polyval(jnp.asarray(_SERIES[::-1], u.dtype), square)
    far = jnp.log(square) + jnp.log(series) - 0.5 * low**2 - LOG_ROOT_2PI
    return jnp.where(u > -1.0, plain, jnp.where(u > TAIL, between, far))


def _as_array(values: Values):
    """As it is if it is an array: numbers of the host keep their precision in differences."""
    return values if isinstance(values, jax.Array) else np.asarray(values, float)


def log_expected_improvement(mean: Values, sd: Values, best: Values) -> Float[Array, "..."]:
    """log E[max(f - best, 0)] (Ament et al. 2023)."""
    return jnp.log(sd) + log_h((mean - best) / sd)


def sd_of_next_mean(sd: Values, noise: Values) -> Float[Array, "..."]:
    """sd^2 / sqrt(sd^2 + noise): how far the mean at a point will move when it is measured there.

    In place of `sd` it makes the expected improvement that of the mean after the datum, which a
    noisy measurement can reach: without noise they are the same (expected quantile improvement at
    the median; Picheny et al. 2013, eq. 13).

    **Arguments:**

    - `noise`: the variance of the noise of one measurement there.
    """
    sd = jnp.asarray(sd)
    return sd * (sd / jnp.hypot(sd, jnp.sqrt(noise)))


def log_probability_of_improvement(mean: Values, sd: Values, best: Values) -> Float[Array, "..."]:
    """log P(f > best) (Kushner 1964)."""
    return log_ndtr((mean - best) / sd)


def upper_confidence_bound(mean: Values, sd: Values, width: float = 2.0) -> Float[Array, "..."]:
    """mean + width sd (Srinivas et al. 2010, with width = sqrt(beta))."""
    return jnp.asarray(mean + width * sd)


def max_value_entropy(
    mean: Values, sd: Values, maxima: Float[ArrayLike, "draws"]
) -> Float[Array, "..."]:
    """log of the information on the value of the maximum (Wang & Jegelka 2017, eq. 6), in nats.

    **Arguments:**

    - `maxima`: draws of the maximum, as `max` of pathwise samples over the candidates.
    """
    mean, sd = (_as_array(v)[..., None] for v in (mean, sd))
    u = jnp.asarray((maxima - mean) / sd)
    log_cdf = log_ndtr(u)
    # u phi / (2 Phi) - log Phi: for u << 0 the terms nearly cancel; for u > 1 both are positive
    # and underflow, so they are added in logarithms, -log Phi = Q (1 + Q / 2 + ...), Q = 1 - Phi
    tiny = jnp.finfo(u.dtype).tiny
    low, log_low = jnp.where(u > 1.0, 1.0, u), jnp.where(u > 1.0, log_ndtr(1.0), log_cdf)
    plain = 0.5 * low * jnp.exp(norm.logpdf(low) - log_low) - log_low
    high = jnp.where(u > 1.0, u, 1.0)
    q = ndtr(-high)
    some = jnp.where(q > 1e-4, q, 0.1)
    ratio = jnp.where(q > 1e-4, -jnp.log1p(-some) / some, 1.0 + q / 2.0 + q**2 / 3.0)
    tail = jnp.logaddexp(
        jnp.log(0.5 * high) + norm.logpdf(high) - log_ndtr(high), log_ndtr(-high) + jnp.log(ratio)
    )
    log_information = jnp.where(u > 1.0, tail, jnp.log(jnp.maximum(plain, tiny)))
    return logsumexp(log_information, axis=-1) - jnp.log(jnp.asarray(maxima).shape[-1])


def straddle(mean: Values, sd: Values, level: Values, width: float = 1.96) -> Float[Array, "..."]:
    """width sd - |mean - level|: where it is open on which side of `level` f is (Bryan 2005)."""
    return width * jnp.asarray(sd) - jnp.abs(mean - level)


def log_feasibility(
    mean: Values, sd: Values, lower: Values = -np.inf, upper: Values = np.inf
) -> Float[Array, "..."]:
    """log P(lower <= g <= upper) of a constraint: add it to a logarithmic acquisition.

    A limit that is not there is an infinity of Python; an array is a limit.
    """
    mean, sd = _as_array(mean), _as_array(sd)
    if _none(lower) and _none(upper):
        return jnp.zeros(jnp.broadcast_shapes(mean.shape, sd.shape))
    if _none(upper):
        return log_ndtr((mean - lower) / sd)
    if _none(lower):
        return log_ndtr((upper - mean) / sd)
    above, below = jnp.asarray((lower - mean) / sd), jnp.asarray((upper - mean) / sd)
    # of the two tails the nearer one, so that neither is a difference from 1
    near, far = jnp.where(above > 0, -above, below), jnp.where(above > 0, -below, above)
    gap = jnp.maximum(log_ndtr(near) - log_ndtr(far), jnp.finfo(near.dtype).tiny)
    return log_ndtr(near) + jnp.log(-jnp.expm1(-gap))


def _none(limit: Values) -> bool:
    return isinstance(limit, float) and math.isinf(limit)


def knowledge_gradient(
    mean: Float[ArrayLike, "m"],
    covariance: Float[ArrayLike, "m q"],
    noisy_sd: Float[ArrayLike, "q"],
) -> Float[Array, "q"]:
    """E[max mean after the datum] - max mean now, exactly, for each point that might be measured.

    The means after a datum are straight lines mean + covariance / noisy_sd z of one normal number
    z. Where line i of their upper envelope, in the order of slopes, meets the next one, at z_i,

        gain = sum_i (slope_i+1 - slope_i) h(-|z_i|),   h(u) = phi(u) + u Phi(u)

    (Frazier, Powell & Dayanik 2009, eq. 14 and algorithm 1). Differentiable.

    **Arguments:**

    - `mean`: posterior mean of the points among which the best is chosen in the end.
    - `covariance`: of them with the `q` points that might be measured.
    - `noisy_sd`: predictive standard deviation of the measurements, with their noise.
    """
    known = noisy_sd > 0.0  # of what is known exactly nothing is learnt
    slopes = jnp.where(known, covariance / jnp.where(known, noisy_sd, 1.0), 0.0)
    return jax.vmap(_envelope_gain, in_axes=(None, 1))(jnp.asarray(mean), slopes)


def _envelope_gain(mean: Float[Array, "m"], slope: Float[Array, "m"]) -> Float[Array, ""]:
    """E[max_i(mean_i + slope_i z)] - max_i mean_i."""
    order, count = _envelope(*jax.lax.stop_gradient((mean, slope)))
    mean, slope = mean[order], slope[order]
    meets = jnp.arange(len(order) - 1) < count - 1
    steeper = jnp.where(meets, jnp.diff(slope), 1.0)
    u = jnp.where(meets, -jnp.abs(jnp.diff(mean) / steeper), 0.0)
    return jnp.sum(jnp.where(meets, steeper * jnp.exp(log_h(u)), 0.0))


def _envelope(mean: Float[Array, "m"], slope: Float[Array, "m"]) -> tuple[Int[Array, "m"], Array]:
    """The lines that are highest somewhere, in the order of their slopes, and how many there are.

    The lines come by their slopes, of equal ones the highest last; each takes from a stack those
    which it hides from where they began.
    """
    lines = jnp.lexsort((mean, slope))

    def meets(i, j):
        steeper = slope[j] - slope[i]
        return jnp.where(steeper > 0.0, (mean[i] - mean[j]) / steeper, -jnp.inf)

    def push(stack, line):
        order, begins, count = stack

        def hidden(count):
            top = jnp.maximum(count - 1, 0)
            return (count > 0) & (meets(order[top], line) <= begins[top])

        count = jax.lax.while_loop(hidden, lambda count: count - 1, count)
        begin = jnp.where(count > 0, meets(order[count - 1], line), -jnp.inf)
        return (order.at[count].set(line), begins.at[count].set(begin), count + 1), None

    empty = jnp.zeros_like(lines), jnp.zeros_like(slope), jnp.zeros((), lines.dtype)
    (order, _, count), _ = jax.lax.scan(push, empty, lines)
    return order, count


def per_second(log_value: Values, seconds: Values) -> Float[Array, "..."]:
    """The logarithm of the value for each second that the measurement takes.

    What takes no time at all comes first, and among itself in the order of its value.
    """
    seconds = jnp.asarray(seconds)
    return log_value - jnp.log(jnp.maximum(seconds, jnp.finfo(seconds.dtype).tiny))


def level_of_best(
    mean: Float[np.ndarray, "m"],
    sd: Float[np.ndarray, "m"],
    known: Float[np.ndarray, "n"],
    count: int,
) -> float:
    """The level above which `count` outcomes are expected, of those known and those predicted.

    log P(f > level) of a candidate is then how probably it is among the `count` best: what a
    search for as many of them as possible maximises greedily (the one-step rule of active search;
    Garnett et al. 2012).

    **Arguments:**

    - `mean`, `sd`: of a measurement of each candidate that has not been measured.
    - `known`: the outcomes of the others.
    """
    wide = 8.0 * sd.max(initial=0.0)
    low = min(known.min(), mean.min(initial=np.inf) - wide)
    high = max(known.max(), mean.max(initial=-np.inf) + wide)
    for _ in range(50):
        level = 0.5 * (low + high)
        expected = np.sum(known > level) + np.sum(ndtr_host((mean - level) / sd))
        low, high = (level, high) if expected > count else (low, level)
    return float(level)


def best_allowed(score: Float[np.ndarray, "m"], allowed, count: int = 1) -> np.ndarray:
    """The indices of the `count` highest scores among the allowed ones, best first.

    **Raises:** `ValueError` when no candidate is allowed, fewer than `count` are, or a score of an
    allowed one is NaN.
    """
    score, allowed = np.asarray(score), np.broadcast_to(np.asarray(allowed, bool), np.shape(score))
    if not allowed.any():
        raise ValueError(f"none of {score.size} candidates is feasible")
    if (left := int(allowed.sum())) < count:
        raise ValueError(f"{count} points are wanted and {left} candidates are left")
    if bad := int(np.isnan(score[allowed]).sum()):
        raise ValueError(f"the acquisition is NaN at {bad} of {left} candidates")
    indices = np.flatnonzero(allowed)  # ties, of -inf too, are only among these
    return indices[np.argsort(-score[indices], kind="stable")[:count]]
