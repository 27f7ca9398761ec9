"""Several processes as one: weighted states, those of one kind side by side."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp
from jaxtyping import Array, ArrayLike, Bool, Float

from micjax.active.gp import process as gp
from micjax.active.gp.observed import grown
from micjax.core.precision import double
from micjax.core.problem import InverseProblem, Values
from micjax.core.tree import replace

TOGETHER = 2048  # points at a time: each takes the memory of all data for every state
OVER_STATES = eqx.if_array(0)


class Mixture(NamedTuple):
    """States on one scale, all of the same data: made by `conditioned` or `of_states`."""

    parts: tuple[gp.Conditioned, ...]  # each of several states of one kind, stacked
    log_weight: Float[Array, "states"]  # of all, part by part; exp of it adds up to 1

    def posteriors(
        self, points: Float[Array, "m d"]
    ) -> tuple[Float[Array, "states m"], Float[Array, "states m"]]:
        """Mean and variance of the function by each state: the part for inside jit."""
        each = [
            eqx.filter_vmap(gp.posterior, in_axes=(OVER_STATES, None))(part, points)
            for part in self.parts
        ]
        means, variances = zip(*each, strict=True)
        return jnp.concatenate(means), jnp.concatenate(variances)

    def noises(self, points: Float[Array, "m d"]) -> Float[Array, "states m"]:
        """The variance of one measurement at each point, by each state."""
        x = gp.Observed.at(points)

        def noise(state):
            return jnp.broadcast_to(state.problem.noise.variances(x), x.present.shape)

        over = eqx.filter_vmap(noise, in_axes=(OVER_STATES,))
        return jnp.concatenate([over(part) for part in self.parts])

    def moments(self, points: Float[Array, "m d"]) -> tuple[Float[Array, "m"], Float[Array, "m"]]:
        """Mean and variance of the function by all states together."""
        weight, (means, variances) = jnp.exp(self.log_weight), self.posteriors(points)
        mean = weight @ means
        return mean, weight @ (variances + (means - mean) ** 2)

    @property
    def observed(self) -> gp.Observed:
        """Where was measured."""
        return jax.tree.map(lambda leaf: leaf[0], self.parts[0].observed)

    @property
    def known(self) -> Float[np.ndarray, "n"]:
        """What was measured there."""
        return np.asarray(self.parts[0].y)[0, : self.observed.measured]


@double
def member(mixture: Mixture, index: int) -> gp.Conditioned:
    """One state of a mixture."""
    for part in mixture.parts:
        if index < len(part.y):
            arrays, rest = eqx.partition(part, eqx.is_array)
            return eqx.combine(jax.tree.map(lambda leaf, i=index: leaf[i], arrays), rest)
        index -= len(part.y)
    raise IndexError(f"{index} more states than there are")


@double
def conditioned(
    parts: Sequence[tuple[InverseProblem, Values]],
    log_weight: Float[ArrayLike, "states"],
    observed: gp.Observed,
    y: Float[Array, "capacity"],
) -> Mixture:
    """The mixture of problems at draws `[k, ...]` of their unknowns.

    **Arguments:**

    - `log_weight`: of all draws, part by part; up to a constant.
    """
    log_weight = jnp.asarray(log_weight)
    states = tuple(
        _conditioned(problem, jax.tree.map(jnp.asarray, values), observed, y)
        for problem, values in parts
    )
    return Mixture(states, log_weight - logsumexp(log_weight))


@eqx.filter_jit
def _conditioned(problem: InverseProblem, values: Values, observed: gp.Observed, y):
    def of_draw(values):
        return gp.conditioned(replace(problem, values), observed, y)

    return eqx.filter_vmap(of_draw)(values)


def of_states(states: Sequence[gp.Conditioned]) -> Mixture:
    """Equally likely states of one kind."""
    return Mixture((_stacked(tuple(states)),), jnp.full(len(states), -np.log(len(states))))


@double
@eqx.filter_jit
def _stacked(states: tuple[gp.Conditioned, ...]):
    def stack(first, *others):
        return jnp.stack((first, *others)) if eqx.is_array(first) else first

    return jax.tree.map(stack, *states)


@double
def with_room(mixture: Mixture, extra: int) -> Mixture:
    """The same mixture in buffers for `extra` more points."""
    observed, y = mixture.observed, mixture.parts[0].y[0]
    needed = observed.measured + extra
    if needed <= len(y):
        return mixture
    return mixture._replace(parts=_anew(mixture.parts, *grown(observed, y, needed)))


@double
@eqx.filter_jit
def _anew(parts: tuple[gp.Conditioned, ...], observed: gp.Observed, y):
    def again(state):
        return gp.conditioned(state.problem, observed, y)

    return tuple(eqx.filter_vmap(again, in_axes=(OVER_STATES,))(part) for part in parts)


def imagined(mixture: Mixture, numbers: Sequence[float], z: float | None = None) -> Mixture:
    """The mixture as if `z` had been measured, or, without it, what each state expects."""
    value = np.asarray(np.nan if z is None else z, float)
    return mixture._replace(parts=_imagined(mixture.parts, np.asarray(numbers, float), value))


@double
@eqx.filter_jit
def _imagined(parts: tuple[gp.Conditioned, ...], point: Array, z: Array):
    def told(state):
        mean, _ = gp.posterior(state, point[None])
        return state.with_datum(point, jnp.where(jnp.isnan(z), mean[0], z), 1.0)

    return tuple(eqx.filter_vmap(told, in_axes=(OVER_STATES,))(part) for part in parts)


@double
def mean_and_variance(
    mixture: Mixture, points: Float[ArrayLike, "m d"], noisy: bool = False
) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """Of the function, or with `noisy` of a measurement."""
    return in_blocks(lambda block: _mean_and_variance(mixture, block, noisy), points)


def in_blocks(function: Callable[[Array], Any], points: Float[ArrayLike, "m d"]) -> Any:
    """`function` of the points, in blocks of one size where there are many, on the host."""
    points = np.asarray(points)
    count = len(points)
    if count <= TOGETHER:
        return jax.device_get(function(jnp.asarray(points)))
    padded = np.resize(np.arange(count), -(-count // TOGETHER) * TOGETHER)
    each = [
        jax.device_get(function(jnp.asarray(points[rows]))) for rows in padded.reshape(-1, TOGETHER)
    ]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *each)


@eqx.filter_jit
def _mean_and_variance(mixture: Mixture, points, noisy: bool):
    mean, variance = mixture.moments(points)
    noise = jnp.exp(mixture.log_weight) @ mixture.noises(points) if noisy else 0.0
    return mean, variance + noise


@double
def best_known(
    mixture: Mixture, sign: float, among: Bool[np.ndarray, "n"] | None = None
) -> Float[Array, "states 1"]:
    """The highest mean times `sign` of each state over all points that it knows, or some."""
    present = np.array(mixture.observed.present)
    if among is not None:
        present[: len(among)] *= among
    return _best_known(mixture, jnp.asarray(sign, float), jnp.asarray(present))


@eqx.filter_jit
def _best_known(mixture: Mixture, sign: Array, present: Array) -> Float[Array, "states 1"]:
    means, _ = mixture.posteriors(mixture.observed.points)
    known = jnp.where(present > 0, sign * means, -jnp.inf)
    return jnp.max(known, axis=1, keepdims=True)
