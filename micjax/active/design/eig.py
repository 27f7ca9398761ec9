"""Expected information gain: how many nats data at x are expected to teach about the unknowns.

    EIG(x) = E[log p(y | theta, x) - log p(y | x)],   theta ~ draws,  y ~ p(y | theta, x)

(Lindley 1956). p(y | x) is a mean over the draws. With the draw that made y among them the estimate
is low on average (prior contrastive estimation, PCE; Foster et al. 2020, eq. 14), without it high
(nested Monte Carlo; Rainforth et al. 2018): the truth lies between. The low one cannot exceed the
logarithm of the number of draws, which `ceiling` tells.

Some unknowns `names`, the others being nuisances: p(y | named, x) takes the place of
p(y | theta, x) and is a mean over nuisances from other draws, moved along their linear regression
on the named ones. That is exact for priors without correlation and for Gaussian posteriors. Again
there are both bounds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from micjax.active.design.fisher import places
from micjax.active.design.particles import by_row
from micjax.core.coordinates import Coordinates
from micjax.core.problem import InverseProblem, Values
from micjax.inference.errors.smc import systematic

TOGETHER = 32  # simulated data compared with all draws side by side, which bounds the memory


class Information(NamedTuple):
    """Bounds of an expected information gain, in nats; each is right on average, not every time."""

    lower: Float[Array, ""]
    upper: Float[Array, ""]
    ceiling: Float[Array, ""]  # `lower` cannot exceed it: log of the effective number of draws
    error: Float[Array, ""]  # standard error of `lower`, by simulated data

    @property
    def saturated(self) -> bool:
        """The draws are too few to tell more information from less."""
        return bool(self.lower > self.ceiling - 1.0)


@eqx.filter_jit
def expected_information(
    key: Array,
    problem: InverseProblem,
    draws: Values,
    x,
    names: Sequence[str] | None = None,
    *,
    log_weights: Float[Array, "count"] | None = None,
    row_weights: Float[Array, "n"] | None = None,
    outer: int = 128,
    inner: int = 128,
) -> Information:
    """Bounds of the information that data at `x` give about the named unknowns.

    Differentiable in `x` with the key held: data are simulated by reparametrisation, or, where the
    noise has none (Poisson), with the score of their probability added to the gradient.

    **Arguments:**

    - `draws`: physical values, {name: [count, ...]}, of priors or of a posterior;
        `Particles.values`, `Posterior.flat`.
    - `names`: what one wants to know, all unknowns if not given.
    - `log_weights`: of the draws, such as `Particles.log_weights`.
    - `row_weights`: how often each row of `x` is measured; 0 leaves a row out.
    - `outer`: how many data are simulated.
    - `inner`: nuisances for each of them.
    """
    count, rows = len(next(iter(draws.values()))), len(x)
    log_weights = jnp.zeros(count) if log_weights is None else log_weights
    log_weights = jax.nn.log_softmax(log_weights)
    row_weights = jnp.ones(rows) if row_weights is None else row_weights
    choose_key, noise_key, inner_key = jax.random.split(key, 3)
    predictions = jax.vmap(lambda v: problem.at(v).forward(x))(draws)
    own = systematic(choose_key, log_weights, outer)

    def log_p(values, prediction, y):
        log_p = problem.at(values).noise(prediction).log_prob(y)
        return jnp.sum(row_weights * by_row(log_p, rows))

    def gains_of_draw(i, noise_key, inner_key):
        values, prediction = jax.tree.map(lambda a: a[i], (draws, predictions))
        noise = problem.at(values).noise(prediction)
        y = noise.sample(noise_key)
        y = y if noise.has_rsample else jax.lax.stop_gradient(y)
        known = log_p(values, prediction, y)
        among = jax.vmap(log_p, (0, 0, None))(draws, predictions, y) + log_weights
        low, high = _with_and_without(among, i, log_weights)
        if len(rest):
            among = jax.vmap(lambda v: log_p(v, problem.at(v).forward(x), y))(
                nuisances(i, inner_key)
            )
            # the own nuisances among the others raise the mean: here it is the other way round
            without = jax.nn.logsumexp(among) - jnp.log(float(inner))
            alone = known - jnp.log(float(inner + 1))
            known_with = jnp.logaddexp(without + jnp.log(inner / (inner + 1)), alone)
            gains = jnp.stack([without - low, known_with - high])
        else:
            gains = known - jnp.stack([low, high])
        if not noise.has_rsample:
            # no derivative of y with x: the probability of y changes instead
            score = known - jax.lax.stop_gradient(known)
            gains = gains + jax.lax.stop_gradient(gains) * score
        return gains

    wanted = np.asarray(places(problem, names))
    rest = np.setdiff1d(np.arange(sum(v[0].size for v in draws.values())), wanted)
    nuisances = _nuisances(problem, draws, log_weights, wanted, rest, inner)
    keys = (jax.random.split(k, outer) for k in (noise_key, inner_key))
    gains = jax.lax.map(lambda a: gains_of_draw(*a), (own, *keys), batch_size=TOGETHER)
    low, high = gains.mean(axis=0)
    effective = -jax.nn.logsumexp(2 * log_weights)
    return Information(low, high, effective, gains[:, 0].std() / jnp.sqrt(outer))


def _with_and_without(among, i, log_weights) -> tuple[Array, Array]:
    """log p(y) as a mean over all draws, and over all but the i-th."""
    others = among.at[i].set(-jnp.inf)
    left = jnp.log1p(-jnp.exp(log_weights[i]))
    return jax.nn.logsumexp(among), jax.nn.logsumexp(others) - left


def _nuisances(problem, draws, log_weights, wanted, rest, inner):
    """A function: index of a draw, key -> `inner` draws, its wanted ones with other nuisances."""
    coordinates = Coordinates(problem)
    flat = jax.vmap(lambda values: coordinates.vector(problem.unconstrain(values)))(draws)
    weights = jnp.exp(log_weights)[:, None]
    ends = jnp.cumsum(weights[:, 0])
    centred = flat - jnp.sum(weights * flat, axis=0)
    # each in units of its own spread; what does not differ among the draws tells nothing
    sd = jnp.sqrt(jnp.sum(weights * centred**2, axis=0))
    unit = jnp.where(sd > 0.0, sd, 1.0)
    known, other = (centred / unit)[:, wanted], (centred / unit)[:, rest]
    scatter = known.T @ (weights * known) + 1e-9 * jnp.eye(len(wanted))  # never singular
    slope = jnp.linalg.solve(scatter, known.T @ (weights * other))
    slope = slope * unit[rest] / unit[wanted][:, None]

    def nuisances(i, key):
        # any draw but the i-th, by its weight
        u = jax.random.uniform(key, (inner,)) * (ends[-1] - weights[i, 0])
        u = jnp.where(u < ends[i] - weights[i, 0], u, u + weights[i, 0])
        j = jnp.minimum(jnp.searchsorted(ends, u, side="right"), len(ends) - 1)
        moved = flat[j][:, rest] + (flat[i, wanted] - flat[j][:, wanted]) @ slope
        point = jnp.broadcast_to(flat[i], (inner, flat.shape[1])).at[:, rest].set(moved)
        return jax.vmap(coordinates.values)(point)

    return nuisances


def pce(key: Array, problem: InverseProblem, draws: Values, x, names=None, **options):
    """The lower bound of `expected_information`: what a plan maximises."""
    return expected_information(key, problem, draws, x, names, **options).lower


def nested(key: Array, problem: InverseProblem, draws: Values, x, names=None, **options):
    """The upper bound of `expected_information`, classical nested Monte Carlo."""
    return expected_information(key, problem, draws, x, names, **options).upper
