"""What a measurement would give, over all models and hyper-parameters that the data leave open.

Every model with every draw of its hyper-parameters predicts a Gaussian on its own scale of the
outcomes. Together they are a mixture, whose quantiles are found in outcomes, where all are one.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float
from scipy.optimize import elementwise
from scipy.special import logsumexp, ndtr, softmax

from micjax.active.acquire.scalarise import Scale
from micjax.active.gp import process as gp
from micjax.active.gp.mixture import conditioned, in_blocks
from micjax.core.precision import double
from micjax.core.problem import InverseProblem

FAR = 10.0  # standard deviations about every mean, between which the quantiles lie
SURE = 1e-9  # of a chance, at a quantile


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


def prediction(models: Sequence["Predictor"], points: Float[ArrayLike, "m d"]) -> Prediction:
    """What all models together predict."""

    def block(some: Float[ArrayLike, "k d"]) -> Prediction:
        parts = [model(some) for model in models]
        lower, median, upper = quantiles(parts, (0.05, 0.5, 0.95))
        return Prediction(median, lower, upper, uncertainty(parts))

    return in_blocks(block, points)


def thinned(
    draws: Sequence[tuple[float, dict[str, np.ndarray]]], count: int | None
) -> list[tuple[Float[np.ndarray, "k"], dict[str, np.ndarray]]]:
    """Of draws of several models `count` by their weights (systematic resampling), if there are
    more; the log weight of each, and its values."""
    sizes = [len(next(iter(values.values()))) for _, values in draws]
    log_weight = np.repeat([weight for weight, _ in draws], sizes)
    ends = np.cumsum(sizes)
    rows = np.arange(ends[-1])
    if count is not None and ends[-1] > count:
        shares = np.cumsum(softmax(log_weight))
        rows = np.searchsorted(shares, (np.arange(count) + 0.5) / count * shares[-1])
        log_weight = np.zeros(ends[-1])
    kept = []
    for size, end, (_, values) in zip(sizes, ends, draws, strict=True):
        own = rows[(rows >= end - size) & (rows < end)]
        some = {name: value[own - (end - size)] for name, value in values.items()}
        kept.append((log_weight[own], some))
    return kept


def quantiles(parts: Sequence[Part], chances: Sequence[float]) -> Float[np.ndarray, "chances m"]:
    """The outcomes below which a measurement at each point falls with these chances."""
    total = logsumexp(np.concatenate([part.log_weight for part in parts]))
    bracket = _bracket(parts)
    reach = [_reach(part, bracket) for part in parts]
    least = np.min([low for low, _ in reach], axis=0)
    most = np.max([high for _, high in reach], axis=0)

    weights = [np.exp(part.log_weight - total) for part in parts]
    sds = [np.sqrt(part.variance + part.noise) for part in parts]

    def beyond(z: Float[np.ndarray, "some"], at: np.ndarray, chance: float) -> np.ndarray:
        """How much more than the chance lies below z, at some of the points."""
        y, below = bracket.invert(z), -chance
        for part, weight, sd in zip(parts, weights, sds, strict=True):
            u = (part.scale.apply(y) - part.mean[:, at]) / sd[:, at]
            below = below + weight @ ndtr(u)
        return below

    every = np.arange(len(least))
    roots = [
        elementwise.find_root(
            functools.partial(beyond, chance=chance),
            (least, most),
            args=(every,),
            tolerances={"fatol": SURE},
        ).x
        for chance in chances
    ]
    return np.asarray([bracket.invert(z) for z in roots])


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


@dataclasses.dataclass(frozen=True)
class Predictor:
    """One process at `k` draws of its unknowns, conditioned on the data: a `Part` of any points."""

    scale: Scale
    log_weight: Float[np.ndarray, "k"]
    states: gp.Conditioned

    @classmethod
    def of(cls, scale: Scale, log_weight, problem: InverseProblem, values: Mapping, observed, y):
        log_weight = np.asarray(log_weight, float)
        (states,) = conditioned([(problem, values)], log_weight, observed, y).parts
        return cls(scale, log_weight, states)

    @double
    def __call__(self, points: Float[ArrayLike, "m d"]) -> Part:
        mean, variance, noise = jax.device_get(_by_state(self.states, jnp.asarray(points)))
        return Part(self.scale, self.log_weight, mean, variance, noise)


@eqx.filter_jit
def _by_state(states: gp.Conditioned, points):
    arrays, rest = eqx.partition(states, eqx.is_array)
    wanted = gp.Observed.at(points)

    def of_state(some):
        state = eqx.combine(some, rest)
        mean, variance = gp.posterior(state, points)
        return mean, variance, jnp.broadcast_to(state.problem.noise.variances(wanted), mean.shape)

    return jax.lax.map(of_state, arrays)  # one after the other: all at once would not fit
