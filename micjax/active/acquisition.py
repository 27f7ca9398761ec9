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
from jaxtyping import Array, ArrayLike, Float
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


def log_expected_improvement(mean: Values, sd: Values, best: Values) -> Float[Array, "..."]:
    """log E[max(f - best, 0)] (Ament et al. 2023)."""
    return jnp.log(sd) + log_h((mean - best) / sd)


def log_probability_of_improvement(mean: Values, sd: Values, best: Values) -> Float[Array, "..."]:
    """log P(f > best) (Kushner 1964)."""
    return log_ndtr((mean - best) / sd)


def upper_confidence_bound(mean: Values, sd: Values, width: float = 2.0) -> Float[Array, "..."]:
    """mean + width sd (Srinivas et al. 2010, with width = sqrt(beta))."""
    return jnp.asarray(mean) + width * sd


def max_value_entropy(
    mean: Values, sd: Values, maxima: Float[Array, "draws"]
) -> Float[Array, "..."]:
    """log of the information on the value of the maximum (Wang & Jegelka 2017, eq. 6), in nats.

    **Arguments:**

    - `maxima`: draws of the maximum, as `max` of pathwise samples over the candidates.
    """
    mean, sd = jnp.asarray(mean), jnp.asarray(sd)
    u = (maxima - mean[..., None]) / sd[..., None]
    log_cdf = log_ndtr(u)
    # u phi / (2 Phi) - log Phi: for u << 0 the terms nearly cancel; for u > 1 both are positive
    # and underflow, so they are added in logarithms, -log Phi = Q (1 + Q / 2 + ...), Q = 1 - Phi
    tiny = jnp.finfo(mean.dtype).tiny
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
    mean: Values, sd: Values, lower: float = -np.inf, upper: float = np.inf
) -> Float[Array, "..."]:
    """log P(lower <= g <= upper) of a constraint: add it to a logarithmic acquisition."""
    mean, sd = jnp.asarray(mean), jnp.asarray(sd)
    if np.isinf(lower) and np.isinf(upper):
        return jnp.zeros(jnp.broadcast_shapes(mean.shape, sd.shape), mean.dtype)
    if np.isinf(upper):
        return log_ndtr((mean - lower) / sd)
    if np.isinf(lower):
        return log_ndtr((upper - mean) / sd)
    above, below = (lower - mean) / sd, (upper - mean) / sd
    # of the two tails the nearer one, so that neither is a difference from 1
    near, far = jnp.where(above > 0, -above, below), jnp.where(above > 0, -below, above)
    gap = jnp.maximum(log_ndtr(near) - log_ndtr(far), jnp.finfo(mean.dtype).tiny)
    return log_ndtr(near) + jnp.log(-jnp.expm1(-gap))


def knowledge_gradient(
    mean: Float[Array, "m"], covariance: Float[Array, "m q"], noisy_sd: Float[Array, "q"]
) -> Float[Array, "q"]:
    """E[max mean after the datum] - max mean now (Frazier et al. 2009), by quadrature.

    **Arguments:**

    - `mean`: posterior mean of the points among which the best is chosen in the end.
    - `covariance`: of them with the `q` points that might be measured.
    - `noisy_sd`: predictive standard deviation of the measurements, with their noise.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(33)
    step = covariance / noisy_sd
    highest = jax.vmap(lambda z: jnp.max(mean[:, None] + step * z, axis=0))(
        jnp.asarray(nodes, mean.dtype)
    )
    weights = jnp.asarray(weights / weights.sum(), mean.dtype)
    return jnp.maximum(weights @ highest - jnp.max(mean), 0.0)


def per_second(log_value: Values, seconds: Values) -> Float[Array, "..."]:
    """The logarithm of the value for each second that the measurement takes."""
    return log_value - jnp.log(seconds)


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
    order = np.argsort(np.where(allowed, -score, np.inf), kind="stable")
    return order[:count]
