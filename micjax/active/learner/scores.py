"""What a measurement is worth by what a learner believes: the acquisitions of its states."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from micjax.active.acquire import values as acquisition
from micjax.active.gp.mixture import Mixture, in_blocks
from micjax.active.learner.cost import travel
from micjax.core.precision import double

TINY = 1e-300  # a squared distance whose logarithm is finite


class Context(NamedTuple):
    """What an acquisition asks beside the posterior: all arrays, so that nothing is compiled."""

    sign: Float[Array, ""]  # -1 to minimise
    best: Float[Array, "states 1"]  # the best value so far by each state
    level: Float[Array, ""]  # to straddle, or above which outcomes are among the best
    paths: Any  # posterior draws, for Thompson and the maxima
    maxima: Float[Array, "draws"]
    position: Float[Array, "d"]
    rates: Float[Array, "d"]
    fixed_s: Float[Array, ""]  # settling and dwell; 1 where time does not count
    taken: Float[Array, "k d"]  # known, waited for or failed; fractions of the box
    reach: Float[Array, "k"]  # so near to each nothing is suggested; below 0: anything may be
    origin: Float[Array, "d"]
    span: Float[Array, "d"]


def _each(points, mixture: Mixture, context: Context):
    """Mean and standard deviation of the function, and the variance of the noise, by each state."""
    means, variances = mixture.posteriors(points)
    return context.sign * means, jnp.sqrt(variances), mixture.noises(points)


def _together(points, mixture: Mixture, context: Context):
    mean, variance = mixture.moments(points)
    return context.sign * mean, jnp.sqrt(variance)


def _over_states(each, points, mixture: Mixture, context: Context):
    """The logarithm of the mean over the states, each of which is a Gaussian: exact, where their
    joint mean and variance would not be."""
    value = logsumexp(each + mixture.log_weight[:, None], axis=0)
    return _per_second(value, points, context)


def _log_ei(points, mixture, context):
    mean, sd, noise = _each(points, mixture, context)
    # of the mean that there will be after a datum with its noise: a better outcome is worth
    # nothing where the function cannot be told to be better
    told = acquisition.sd_of_next_mean(sd, noise)
    each = acquisition.log_expected_improvement(mean, told, context.best)
    return _over_states(each, points, mixture, context)


def _log_pi(points, mixture, context):
    mean, sd, _ = _each(points, mixture, context)
    each = acquisition.log_probability_of_improvement(mean, sd, context.best)
    return _over_states(each, points, mixture, context)


def _among_best(points, mixture, context):
    mean, sd, noise = _each(points, mixture, context)
    noisy = jnp.sqrt(sd**2 + noise)
    each = acquisition.log_probability_of_improvement(mean, noisy, context.level)
    return _over_states(each, points, mixture, context)


def _uncertainty(points, mixture, context):
    _, sd = _together(points, mixture, context)
    return _per_second(jnp.log(sd), points, context)


def _mes(points, mixture, context):
    mean, sd = _together(points, mixture, context)
    value = acquisition.max_value_entropy(mean, sd, context.maxima)
    return _per_second(value, points, context)


def _ucb(points, mixture, context):
    mean, sd = _together(points, mixture, context)
    return acquisition.upper_confidence_bound(mean, sd)


def _straddle(points, mixture, context):
    mean, sd = _together(points, mixture, context)
    return acquisition.straddle(mean, sd, context.level)


def _thompson(points, mixture, context):
    return context.sign * context.paths(points)[0]


def _per_second(value, points, context):
    seconds = travel(context.position, points, context.rates) + context.fixed_s
    return acquisition.per_second(value, seconds)


def _gap(points, mixture, context):
    squares = jnp.min(_squares(points, context), axis=1)
    return _per_second(jnp.log(jnp.maximum(squares, TINY)), points, context)


def _squares(points, context) -> Float[Array, "m k"]:
    """Of the distances to all that is taken."""
    scaled = (points - context.origin) / context.span
    return jnp.sum((scaled[:, None] - context.taken) ** 2, axis=-1)


def _elsewhere(score):
    """The score where a point may be suggested."""

    def barred(points, mixture, context):
        allowed = context.reach * jnp.abs(context.reach)
        near = jnp.any(_squares(points, context) <= allowed, axis=1)
        return jnp.where(near, -jnp.inf, score(points, mixture, context))

    return barred


SCORES = {
    name: _elsewhere(score)
    for name, score in {
        "log_ei": _log_ei,
        "ucb": _ucb,
        "pi": _log_pi,
        "among_best": _among_best,
        "uncertainty": _uncertainty,
        "thompson": _thompson,
        "mes": _mes,
        "straddle": _straddle,
        "gap": _gap,
    }.items()
}


@double
def scores(score, points, mixture, context: Context) -> Float[np.ndarray, "m"]:
    """An acquisition at all candidates."""
    return in_blocks(lambda block: _scores(score, block, mixture, context), points)


@eqx.filter_jit
def _scores(score, points, mixture, context):
    return score(points, mixture, context)


@double
def paths_at(paths, points) -> np.ndarray:
    return np.asarray(eqx.filter_jit(paths)(jnp.asarray(points)))
