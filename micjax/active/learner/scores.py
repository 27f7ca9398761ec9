"""What a measurement is worth by what a learner believes: the acquisitions of its states."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from micjax.active.acquire import noisy
from micjax.active.acquire import values as acquisition
from micjax.active.acquire.hypervolume import Boxes, log_expected_hypervolume
from micjax.active.gp.mixture import OVER_STATES, Mixture, in_blocks
from micjax.active.learner.cost import travel
from micjax.active.rules import Allows, allowed_by
from micjax.core.precision import double

TINY = 1e-300  # a squared distance whose logarithm is finite


class Limit(NamedTuple):
    """Between which values a function has to be; None where nothing bounds it."""

    mixture: Mixture
    lower: Float[Array, ""] | None
    upper: Float[Array, ""] | None


class Aim(NamedTuple):
    """A function that is maximised, or with the sign -1 minimised."""

    mixture: Mixture
    sign: Float[Array, ""]


class SettingRules(NamedTuple):
    """What is known about which settings are allowed, functions of these axes."""

    rules: tuple[Allows, ...] = ()
    names: tuple[str, ...] = ()


class Context(NamedTuple):
    """What an acquisition asks beside the posterior: all arrays, so that nothing is compiled."""

    sign: Float[Array, ""]  # -1 to minimise
    best: Float[Array, "states 1"]  # the best value so far by each state
    repeats: Float[Array, ""]  # 0 where nothing can be measured twice, else 1
    level: Float[Array, ""]  # to straddle, or above which outcomes are among the best
    paths: Any  # posterior draws, for Thompson and the maxima
    maxima: Float[Array, "draws"]
    truths: Any  # what the function may be at the data by each part, for the noisy improvement
    among: Float[Array, "k d"]  # points of which the best is chosen in the end
    position: Float[Array, "d"]
    rates: Float[Array, "d"]
    fixed_s: Float[Array, ""]  # settling and dwell; 1 where time does not count
    taken: Float[Array, "k d"]  # known, waited for or failed; fractions of the box
    reach: Float[Array, "k"]  # so near to each nothing is suggested; below 0: anything may be
    origin: Float[Array, "d"]
    span: Float[Array, "d"]
    rules: SettingRules = SettingRules()
    limits: tuple[Limit, ...] = ()
    objectives: tuple[Aim, ...] = ()  # beside the main one
    boxes: Boxes | None = None  # beyond the front of all objectives


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
    # nothing where the function cannot be told to be better. Where every candidate is measured
    # once the outcome is all that there will ever be of it
    told = acquisition.sd_of_next_mean(sd, context.repeats * noise)
    each = acquisition.log_expected_improvement(mean, told, context.best)
    return _over_states(each, points, mixture, context)


def _noisy_ei(points, mixture, context):
    over = eqx.filter_vmap(noisy.log_noisy_improvement, in_axes=(None, OVER_STATES, 0, None))
    each = [
        over(points, part, drawn, context.sign)
        for part, drawn in zip(mixture.parts, context.truths, strict=True)
    ]
    return _over_states(jnp.concatenate(each), points, mixture, context)


def _knowledge_gradient(points, mixture, context):
    over = eqx.filter_vmap(noisy.log_knowledge, in_axes=(None, OVER_STATES, None, None))
    each = [over(points, part, context.among, context.sign) for part in mixture.parts]
    return _over_states(jnp.concatenate(each), points, mixture, context)


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


def _hypervolume(points, mixture, context):
    all_of_them = (Aim(mixture, context.sign), *context.objectives)
    means, sds = [], []
    for objective in all_of_them:
        mean, variance = objective.mixture.posteriors(points)
        noise = objective.mixture.noises(points)
        means.append(objective.sign * mean)
        sds.append(acquisition.sd_of_next_mean(jnp.sqrt(variance), context.repeats * noise))
    log_weights = [objective.mixture.log_weight for objective in all_of_them]
    value = log_expected_hypervolume(means, sds, log_weights, context.boxes)
    return _per_second(value, points, context)


def _feasible(points, mixture, context):
    """While nothing feasible is known only how probably a point is."""
    return _per_second(jnp.zeros(len(points)), points, context)


def _log_kept(points, limit: Limit):
    """The log probability that the function is within its limits."""
    means, variances = limit.mixture.posteriors(points)
    lower = -math.inf if limit.lower is None else limit.lower
    upper = math.inf if limit.upper is None else limit.upper
    each = acquisition.log_feasibility(means, jnp.sqrt(variances), lower, upper)
    return logsumexp(each + limit.mixture.log_weight[:, None], axis=0)


def _gap(points, mixture, context):
    squares = jnp.min(_squares(points, context), axis=1)
    return _per_second(jnp.log(jnp.maximum(squares, TINY)), points, context)


def _squares(points, context) -> Float[Array, "m k"]:
    """Of the distances to all that is taken."""
    scaled = (points - context.origin) / context.span
    return jnp.sum((scaled[:, None] - context.taken) ** 2, axis=-1)


def _elsewhere(score):
    """The score where a point may be suggested."""

    def within(points, mixture, context):
        allowed = context.reach * jnp.abs(context.reach)
        barred = jnp.any(_squares(points, context) <= allowed, axis=1)
        if context.rules.rules:
            barred = barred | ~allowed_by(*context.rules, points)
        value = score(points, mixture, context)
        for limit in context.limits:
            value = value + _log_kept(points, limit)
        return jnp.where(barred, -jnp.inf, value)

    return within


SCORES = {
    name: _elsewhere(score)
    for name, score in {
        "log_ei": _log_ei,
        "noisy_ei": _noisy_ei,
        "knowledge_gradient": _knowledge_gradient,
        "ucb": _ucb,
        "pi": _log_pi,
        "among_best": _among_best,
        "uncertainty": _uncertainty,
        "thompson": _thompson,
        "mes": _mes,
        "straddle": _straddle,
        "gap": _gap,
        "hypervolume": _hypervolume,
        "feasible": _feasible,
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
def truths(mixture: Mixture, z, sign) -> tuple[noisy.Truths, ...]:
    """What the function may be at the data, by each state of each part."""
    z, sign = jnp.asarray(z), jnp.asarray(sign)
    # one part after the other, see `noisy.truths`
    return tuple(jax.block_until_ready(_truths(part, z, sign)) for part in mixture.parts)


@eqx.filter_jit
def _truths(part, z, sign) -> noisy.Truths:
    arrays, rest = eqx.partition(part, eqx.is_array)
    return jax.lax.map(lambda some: noisy.truths(eqx.combine(some, rest), z, sign), arrays)


@double
def paths_at(paths, points) -> np.ndarray:
    return np.asarray(eqx.filter_jit(paths)(jnp.asarray(points)))
