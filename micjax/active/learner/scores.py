"""What a measurement is worth by what a learner believes: the acquisitions of its states."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from micjax.active.acquire import values as acquisition
from micjax.active.gp import process as gp
from micjax.active.learner import belief
from micjax.active.learner.cost import travel
from micjax.core.precision import double


class Context(NamedTuple):
    """What an acquisition asks beside the posterior: all arrays, so that nothing is compiled."""

    sign: Float[Array, ""]  # -1 to minimise
    best: Float[Array, ""]
    level: Float[Array, ""]  # to straddle, or above which outcomes are among the best
    paths: Any  # posterior draws, for Thompson and the maxima
    maxima: Float[Array, "draws"]
    position: Float[Array, "d"]
    rates: Float[Array, "d"]
    fixed_s: Float[Array, ""]  # settling and dwell; 1 where time does not count


def _mean_sd(points, states: tuple[gp.Conditioned, ...], context: Context):
    mean, variance = belief.posterior(states, points)
    return context.sign * mean, jnp.sqrt(variance)


def _of_mixture(value, points, states, context):
    """The logarithm of the mean over the states, each of which is a Gaussian: exact, where their
    joint mean and variance would not be."""
    each = [value(state, *_mean_sd(points, (state,), context)) for state in states]
    return _per_second(logsumexp(jnp.stack(each), axis=0) - np.log(len(states)), points, context)


def _log_ei(points, states, context):
    def value(_, mean, sd):
        return acquisition.log_expected_improvement(mean, sd, context.best)

    return _of_mixture(value, points, states, context)


def _log_pi(points, states, context):
    def value(_, mean, sd):
        return acquisition.log_probability_of_improvement(mean, sd, context.best)

    return _of_mixture(value, points, states, context)


def _among_best(points, states, context):
    def value(state, mean, sd):
        noisy = jnp.sqrt(sd**2 + belief.noise_variance((state,), points))
        return acquisition.log_probability_of_improvement(mean, noisy, context.level)

    return _of_mixture(value, points, states, context)


def _uncertainty(points, states, context):
    _, sd = _mean_sd(points, states, context)
    return _per_second(jnp.log(sd), points, context)


def _mes(points, states, context):
    mean, sd = _mean_sd(points, states, context)
    value = acquisition.max_value_entropy(mean, sd, context.maxima)
    return _per_second(value, points, context)


def _ucb(points, states, context):
    mean, sd = _mean_sd(points, states, context)
    return acquisition.upper_confidence_bound(mean, sd)


def _straddle(points, states, context):
    mean, sd = _mean_sd(points, states, context)
    return acquisition.straddle(mean, sd, context.level)


def _thompson(points, states, context):
    return context.sign * context.paths(points)[0]


def _per_second(value, points, context):
    seconds = travel(context.position, points, context.rates) + context.fixed_s
    return acquisition.per_second(value, seconds)


SCORES = {
    "log_ei": _log_ei,
    "ucb": _ucb,
    "pi": _log_pi,
    "among_best": _among_best,
    "uncertainty": _uncertainty,
    "thompson": _thompson,
    "mes": _mes,
    "straddle": _straddle,
}


@double
def scores(score, points, states, context: Context) -> Float[np.ndarray, "m"]:
    """An acquisition at all candidates."""
    return np.asarray(_scores(score, jnp.asarray(points), states, context))


@eqx.filter_jit
def _scores(score, points, states, context):
    return score(points, states, context)


@double
def paths_at(paths, points) -> np.ndarray:
    return np.asarray(eqx.filter_jit(paths)(jnp.asarray(points)))
