"""What a measurement would give, over all models and hyper-parameters that the data leave open.

Every model with every draw of its hyper-parameters predicts a Gaussian on its own scale of the
outcomes. Together they are a mixture, whose quantiles are found in outcomes, where all are one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import logsumexp, ndtr, softmax

from micjax.active.acquire.scalarise import Scale
from micjax.active.gp import process as gp
from micjax.core.problem import InverseProblem, Values
from micjax.core.tree import replace

FAR = 10.0  # standard deviations about every mean, between which the quantiles lie
BISECTIONS = 40


class Prediction(NamedTuple):
    """The outcome at some points, in its own units: the median and a 90 % interval of a
    measurement there, and the standard deviation of the function in the units of the model."""

    median: Float[np.ndarray, "m"]
    lower: Float[np.ndarray, "m"]
    upper: Float[np.ndarray, "m"]
    uncertainty: Float[np.ndarray, "m"]


class Part(NamedTuple):
    """Gaussians at m points on one scale, each of them of one model with one draw."""

    scale: Scale
    log_weight: Float[np.ndarray, "k"]  # relative to those of the other parts
    mean: Float[np.ndarray, "k m"]
    variance: Float[np.ndarray, "k m"]  # of the function
    noise: Float[np.ndarray, "k m"]  # variance of a measurement beside it


def quantiles(parts: Sequence[Part], chances: Sequence[float]) -> Float[np.ndarray, "chances m"]:
    """The outcomes below which a measurement at each point falls with these chances."""
    total = logsumexp(np.concatenate([part.log_weight for part in parts]))
    bracket = _bracket(parts)
    reach = [_reach(part, bracket) for part in parts]
    least = np.min([low for low, _ in reach], axis=0)
    most = np.max([high for _, high in reach], axis=0)

    def below(z: Float[np.ndarray, "m"]) -> Float[np.ndarray, "m"]:
        y, chance = bracket.invert(z), 0.0
        for part in parts:
            u = (part.scale.apply(y) - part.mean) / np.sqrt(part.variance + part.noise)
            chance = chance + np.exp(part.log_weight - total) @ ndtr(u)
        return chance

    values = []
    for chance in chances:
        low, high = least, most
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            enough = below(middle) >= chance
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        values.append(bracket.invert(0.5 * (low + high)))
    return np.asarray(values)


def _bracket(parts: Sequence[Part]) -> Scale:
    """A scale on which every outcome that a part holds for possible has a number."""
    if all(part.scale.bend == parts[0].scale.bend for part in parts):
        return parts[0].scale
    widths = [np.ptp(part.scale.invert(np.array([-1.0, 1.0]))) for part in parts]
    return Scale(0.0, float(min(widths)), 0.0, 1.0, "arcsinh")


def _reach(part: Part, bracket: Scale) -> tuple[np.ndarray, np.ndarray]:
    """The interval on another scale outside which the Gaussians of a part have nothing."""
    wide = FAR * np.sqrt(part.variance + part.noise)
    ends = np.min(part.mean - wide, axis=0), np.max(part.mean + wide, axis=0)
    if part.scale == bracket:
        return ends
    low, high = (bracket.apply(part.scale.invert(end)) for end in ends)
    return low, high


def uncertainty(parts: Sequence[Part]) -> Float[np.ndarray, "m"]:
    """The standard deviation of the function on the scale of the first part."""
    same = [part for part in parts if part.scale == parts[0].scale]
    weight = softmax(np.concatenate([part.log_weight for part in same]))
    mean = np.concatenate([part.mean for part in same])
    variance = np.concatenate([part.variance for part in same])
    centre = weight @ mean
    return np.sqrt(weight @ (variance + (mean - centre) ** 2))


@gp.double
def over_draws(
    draws: Values, problem: InverseProblem, observed: gp.Observed, y, points
) -> tuple[Float[np.ndarray, "k m"], Float[np.ndarray, "k m"], Float[np.ndarray, "k m"]]:
    """Mean and variance of the function and variance of the noise at `points`, by each draw."""
    draws = jax.tree.map(jnp.asarray, draws)
    return jax.device_get(_over_draws(draws, problem, observed, y, jnp.asarray(points)))


@eqx.filter_jit
def _over_draws(draws: Values, problem: InverseProblem, observed: gp.Observed, y: Array, points):
    wanted = gp.Observed.at(points)

    def by_draw(values):
        at = replace(problem, values)
        mean, variance = gp.posterior(gp.conditioned(at, observed, y), points)
        return mean, variance, jnp.broadcast_to(at.noise.variances(wanted), mean.shape)

    return jax.lax.map(by_draw, draws)
