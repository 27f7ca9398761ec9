"""Streaming full Bayes: weighted particles of the unknowns of a process, datum by datum.

Every particle follows its own posterior at common points by rank-1 updates. The predictive density
of a datum, which the update yields, is the factor of its weight (Chopin 2002). When few weights
are left the particles are drawn anew and moved on the marginal likelihood. They begin as draws of
the priors, into which the data are let by degrees (`micjax.inference.errors.smc`), as is a datum
that surprises.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp
from jaxtyping import Array, ArrayLike, Float

from micjax.active.acquire import values as acquisition
from micjax.active.gp import process as gp
from micjax.active.gp.process import Observed, State, Tracked
from micjax.core.coordinates import Coordinates
from micjax.core.precision import double
from micjax.core.problem import InverseProblem
from micjax.inference.errors import smc
from micjax.inference.errors.nuts import Posterior

SURPRISED = 0.2  # of the particles: with fewer effective ones a datum is let in by degrees


class Followed(NamedTuple):
    """The part of a `gp.Tracked` that is each particle's own."""

    root: Float[Array, "particles capacity capacity"]
    white: Float[Array, "particles capacity"]
    jitter: Float[Array, "particles"]
    known: Float[Array, "particles capacity m"]
    mean: Float[Array, "particles m"]
    variance: Float[Array, "particles m"]


class Cloud(NamedTuple):
    """Weighted particles of the unknowns of a process, and their posteriors at `points`."""

    problem: InverseProblem  # whose unknowns they are; its own values do not count
    observed: Observed
    y: Float[Array, "capacity"]
    points: Float[Array, "m d"]
    theta: Float[Array, "particles p"]  # unconstrained
    log_weight: Float[Array, "particles"]  # exp of it adds up to 1
    log_evidence: Float[Array, ""]  # log p(y), nats
    followed: Followed

    @property
    def count(self) -> int:
        return self.observed.measured

    @property
    def effective(self) -> float:
        """As many particles of equal weight are worth as much."""
        return smc.effective(self.log_weight)


# --- from the priors to the posterior ----------------------------------------------------------


@double
def begin(
    problem: InverseProblem,
    observed: Observed,
    y: Float[Array, "capacity"],
    points: Float[ArrayLike, "m d"],
    key: Array,
    *,
    particles: int = 128,
) -> Cloud:
    """Particles of the posterior of a process, by tempering from its priors.

    **Arguments:**

    - `observed`, `y`: as `gp.buffered` makes them.
    - `points`: where the posterior is followed, such as all candidates for the next measurement.
    - `particles`: an even number.

    **Raises:** `ValueError` for an improper prior, or an odd number of particles;
    `NonFiniteError` when the likelihood is finite for none of the draws.
    """
    theta, log_evidence = smc.from_priors(problem, observed, y, key, particles=particles)
    points, log_weight = jnp.asarray(points), jnp.asarray(smc.equal(particles))
    followed = _follow(theta, problem, observed, y, points)
    return Cloud(problem, observed, y, points, theta, log_weight, log_evidence, followed)


# --- one more datum ----------------------------------------------------------------------------


@double
def tell(
    cloud: Cloud, point: gp.Point, y: ArrayLike, key: Array, noise_ratio: ArrayLike = 1.0
) -> Cloud:
    """The cloud with one more datum. Full buffers are doubled, which compiles anew.

    A datum that surprises nearly all particles is let in by degrees.

    **Raises:** `ValueError` for a value that is not finite.
    """
    new = gp.datum(point, y, noise_ratio)
    if cloud.count == len(cloud.y):
        observed, values = gp.grown(cloud.observed, cloud.y)
        followed = _follow(cloud.theta, cloud.problem, observed, values, cloud.points)
        cloud = cloud._replace(observed=observed, y=values, followed=followed)
    updated = _told(cloud, *new)
    if updated.effective >= smc.ENOUGH * len(updated.theta):
        return updated
    if updated.effective >= SURPRISED * len(updated.theta):
        return rejuvenated(updated, key)
    density = smc.Data(updated.problem, updated.observed, updated.y, cloud.observed)
    begun = smc.placed(cloud.theta, density)
    end, _, gained, _ = smc.let_in(
        key, begun, cloud.log_weight, density, smc.walks_and_jumps, settle=True
    )
    return _equal(updated, end.theta)._replace(log_evidence=cloud.log_evidence + gained)


@eqx.filter_jit
def _told(cloud: Cloud, point, y, noise_ratio):
    n = cloud.observed.free_row

    def of_particle(theta, own):
        new = gp.told(_tracked(cloud, theta, own), point, y, noise_ratio)
        log_density = jnp.log(new.state.root[n, n]) - 0.5 * new.state.white[n] ** 2
        return _own(new), new.state.observed, new.state.y, log_density

    followed, observed, values, factors = jax.vmap(of_particle, out_axes=(0, None, None, 0))(
        cloud.theta, cloud.followed
    )
    weight = cloud.log_weight + factors - 0.5 * jnp.log(2.0 * jnp.pi)
    total = logsumexp(weight)
    return cloud._replace(
        observed=observed,
        y=values,
        log_weight=weight - total,
        log_evidence=cloud.log_evidence + total,
        followed=followed,
    )


@double
def rejuvenated(cloud: Cloud, key: Array) -> Cloud:
    """Particles of the same posterior with equal weights, at other places."""
    density = smc.Data(cloud.problem, cloud.observed, cloud.y)
    begun = smc.placed(cloud.theta, density)
    moved, _ = smc.walks_and_jumps(key, begun, cloud.log_weight, jnp.ones(()), density)
    return _equal(cloud, moved.theta)


def _equal(cloud: Cloud, theta: Float[Array, "particles p"]) -> Cloud:
    """The cloud with equally likely particles at other places."""
    followed = _follow(theta, cloud.problem, cloud.observed, cloud.y, cloud.points)
    log_weight = jnp.asarray(smc.equal(len(theta)))
    return cloud._replace(theta=theta, log_weight=log_weight, followed=followed)


# --- what the particles say --------------------------------------------------------------------


@double
def predict(cloud: Cloud) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """Mean and variance of the function (without noise) at the points of the cloud."""
    return jax.device_get(_mixture(cloud))


@eqx.filter_jit
def _mixture(cloud: Cloud):
    weight, (means, variances) = jnp.exp(cloud.log_weight), moments(cloud)
    mean = weight @ means
    return mean, weight @ (variances + (means - mean) ** 2)


@double
def predict_measured(cloud: Cloud) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """Mean and variance of what a measurement (with its noise) at the points would give."""
    mean, variance = predict(cloud)
    return mean, variance + np.asarray(_noise(cloud))


@eqx.filter_jit
def _noise(cloud: Cloud) -> Float[Array, "m"]:
    x, at = Observed.at(cloud.points), Coordinates(cloud.problem).at
    each = jax.vmap(lambda theta: at(theta).noise.variances(x))(cloud.theta)
    return jnp.exp(cloud.log_weight) @ each


def moments(cloud: Cloud) -> tuple[Float[Array, "particles m"], Float[Array, "particles m"]]:
    """Mean and variance of the function by each particle, at the points of the cloud."""
    return cloud.followed.mean, cloud.followed.variance


@double
def log_expected_improvement(cloud: Cloud, best: ArrayLike) -> Float[Array, "m"]:
    """log E[max(f - best, 0)] over the particles too, at the points of the cloud."""
    return _log_improvement(cloud, jnp.asarray(best, float))


@eqx.filter_jit
def _log_improvement(cloud: Cloud, best: Float[Array, ""]) -> Float[Array, "m"]:
    means, variances = moments(cloud)
    each = acquisition.log_expected_improvement(means, jnp.sqrt(variances), best)
    return logsumexp(each + cloud.log_weight[:, None], axis=0)


@double
@eqx.filter_jit
def following(cloud: Cloud, points: Float[ArrayLike, "m d"]) -> Cloud:
    """The same particles at other points: for `predict` anywhere, and inside a search."""
    points = jnp.asarray(points)
    followed = _follow(cloud.theta, cloud.problem, cloud.observed, cloud.y, points)
    return cloud._replace(points=points, followed=followed)


@double
def values(cloud: Cloud) -> dict[str, Float[np.ndarray, "particles ..."]]:
    """The unknowns of all particles, in physical values; `cloud.log_weight` weighs them."""
    return jax.device_get(_physical(cloud.problem, cloud.theta))


@double
def draws(cloud: Cloud, key: Array, count: int = 1000) -> Posterior:
    """Draws of the unknowns by the weights, in physical values."""
    rows = jax.random.categorical(key, cloud.log_weight, shape=(count,))
    values = jax.device_get(_physical(cloud.problem, cloud.theta[rows]))
    return Posterior({name: value[None] for name, value in values.items()})


# --- the compiled part -------------------------------------------------------------------------


@eqx.filter_jit
def _physical(problem: InverseProblem, theta: Float[Array, "count p"]):
    return jax.vmap(Coordinates(problem).values)(theta)


def _tracked(cloud: Cloud, theta: Float[Array, "p"], own: Followed) -> Tracked:
    problem = Coordinates(cloud.problem).at(theta)
    state = State(problem, cloud.observed, cloud.y, own.root, own.white, own.jitter)
    return Tracked(state, cloud.points, own.known, own.mean, own.variance)


def _own(tracked: Tracked) -> Followed:
    state = tracked.state
    return Followed(
        state.root, state.white, state.jitter, tracked.known, tracked.mean, tracked.variance
    )


@eqx.filter_jit
def _follow(theta: Float[Array, "particles p"], problem, observed, y, points) -> Followed:
    def of_particle(theta):
        at = Coordinates(problem).at(theta)
        return _own(gp.tracked(gp.conditioned(at, observed, y), points))

    return jax.lax.map(of_particle, theta)
