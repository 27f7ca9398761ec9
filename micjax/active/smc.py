"""Streaming full Bayes: weighted particles of the unknowns of a process, datum by datum.

Every particle follows its own posterior at common points by rank-1 updates. The predictive density
of a datum, which the update yields, is the factor of its weight (Chopin 2002). When few weights
are left the particles are drawn anew by them and moved by Metropolis-Hastings on the marginal
likelihood. They begin as draws of the priors, into which the data are let by degrees (Del Moral,
Doucet & Jasra 2006), as is a datum that surprises; the mean factors multiply up to the evidence.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jax.nn import logsumexp
from jaxtyping import Array, ArrayLike, Float, Int

from micjax.active.acquire import values as acquisition
from micjax.active.gp import process as gp
from micjax.active.gp.process import Observed, State, Tracked, double
from micjax.core.problem import InverseProblem, log_likelihood
from micjax.inference.errors.nuts import Posterior
from micjax.inference.finite import NonFiniteError, non_finite
from micjax.inference.starts.draw import prior_draws

ENOUGH = 0.7  # of the particles: with fewer effective ones they are drawn anew
SURPRISED = 0.2  # with still fewer the datum is let in by degrees
ROUNDS = 6  # of moves then: each particle walks once and jumps once in a round
TAILS = 5  # degrees of freedom of the proposals to jump to


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
        return int(np.sum(np.asarray(self.observed.present)))

    @property
    def effective(self) -> float:
        """As many particles of equal weight are worth as much: 1 / sum w^2 (Kong 1992)."""
        return float(1.0 / np.sum(np.exp(2.0 * np.asarray(self.log_weight))))


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
    if particles < 4 or particles % 2:
        raise ValueError(f"{particles} particles; they move in two halves, so it has to be even")
    draw, key = jax.random.split(key)
    theta = _prior_cloud(draw, problem, particles)
    likelihood = _likelihoods(theta, problem, observed, y)
    if not np.isfinite(likelihood).any():
        values = problem.constrain(_unravel(theta[0], problem))
        what = non_finite(problem.unconstrain(values), problem, observed, y)
        raise NonFiniteError(f"the likelihood is finite for none of {particles} draws: {what}")
    placed = Placed(theta, jnp.zeros(particles), likelihood)
    equal = jnp.full(particles, -np.log(particles))
    theta, log_evidence = _let_in(key, placed, equal, problem, None, observed, y)
    points = jnp.asarray(points)
    followed = _follow(theta, problem, observed, y, points)
    return Cloud(problem, observed, y, points, theta, equal, log_evidence, followed)


@eqx.filter_jit
def _prior_cloud(key: Array, problem: InverseProblem, count: int) -> Float[Array, "count p"]:
    unknowns, draws = problem.unknowns(), {}
    for k, (name, prior) in zip(
        jax.random.split(key, len(unknowns)), unknowns.items(), strict=True
    ):
        values = prior_draws(prior, k, (count,))
        if values is None:
            raise ValueError(f"the prior of {name!r} is improper: nothing can be drawn from it")
        draws[name] = dist.biject_to(prior.support).inv(values)
    return jax.vmap(lambda theta: ravel_pytree(theta)[0])(draws)


# --- letting data in by degrees ----------------------------------------------------------------


class Placed(NamedTuple):
    """Particles, and the log likelihoods of the data before and of all data where they are."""

    theta: Float[Array, "n p"]
    before: Float[Array, "n"]
    after: Float[Array, "n"]


def _let_in(
    key: Array,
    placed: Placed,
    log_weight: Float[Array, "n"],
    problem: InverseProblem,
    before: Observed | None,
    observed: Observed,
    y: Array,
) -> tuple[Float[Array, "n p"], Float[Array, ""]]:
    """Equally likely particles of the posterior of all data, from weighted ones of that before;
    and log p(new data | data before). `before` is None where there are no data before."""
    rest, log_evidence = 1.0, jnp.zeros(())
    while rest > 0.0:
        key, move = jax.random.split(key)
        gain = np.nan_to_num(placed.after - placed.before, nan=-np.inf, neginf=-np.inf)
        step = _bearable(gain, np.asarray(log_weight), rest)
        rest -= step
        weight = log_weight + step * gain
        total = logsumexp(weight)
        log_evidence += total
        power = jnp.asarray(1.0 - rest)
        placed = _moved(move, placed, weight - total, power, problem, before, observed, y)
        log_weight = jnp.full(len(gain), -np.log(len(gain)))
    return placed.theta, log_evidence


def _bearable(gain: np.ndarray, log_weight: np.ndarray, most: float) -> float:
    """The largest step of the power that leaves enough effective particles, by bisection."""

    def enough(step: float) -> bool:
        weight = np.exp(log_weight + step * (gain - gain.max()))
        effective = weight.sum() ** 2 / (weight**2).sum()
        return bool(effective >= ENOUGH * np.isfinite(gain).sum())

    if enough(most):
        return most
    low, high = 0.0, most
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if enough(middle) else (low, middle)
    return max(low, most * 0.5**50)  # never nothing at all, or there would be no end


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
    told = _told(cloud, *new)
    if told.effective >= ENOUGH * len(told.theta):
        return told
    if told.effective >= SURPRISED * len(told.theta):
        return rejuvenated(told, key)
    data = told.problem, told.observed, told.y
    placed = Placed(
        cloud.theta,
        _likelihoods(cloud.theta, cloud.problem, cloud.observed, cloud.y),
        _likelihoods(cloud.theta, *data),
    )
    theta, gained = _let_in(key, placed, cloud.log_weight, told.problem, cloud.observed, *data[1:])
    return told._replace(
        theta=theta,
        log_weight=jnp.full(len(theta), -np.log(len(theta))),
        log_evidence=cloud.log_evidence + gained,
        followed=_follow(theta, *data, told.points),
    )


@eqx.filter_jit
def _told(cloud: Cloud, point, y, noise_ratio):
    n = jnp.sum(cloud.observed.present).astype(int)

    def one(theta, own):
        new = gp.told(_tracked(cloud, theta, own), point, y, noise_ratio)
        log_density = jnp.log(new.state.root[n, n]) - 0.5 * new.state.white[n] ** 2
        return _own(new), new.state.observed, new.state.y, log_density

    followed, observed, values, factors = jax.vmap(one, out_axes=(0, None, None, 0))(
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
    data = cloud.problem, cloud.observed, cloud.y
    likelihood = _likelihoods(cloud.theta, *data)
    placed = Placed(cloud.theta, jnp.zeros_like(likelihood), likelihood)
    moved = _moved(key, placed, cloud.log_weight, jnp.ones(()), data[0], None, *data[1:])
    theta = moved.theta
    equal = jnp.full(len(theta), -np.log(len(theta)))
    followed = _follow(theta, *data, cloud.points)
    return cloud._replace(theta=theta, log_weight=equal, followed=followed)


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
    ones = jnp.ones(len(cloud.points))
    x = Observed(cloud.points, ones, ones)
    each = jax.vmap(lambda theta: _at(theta, cloud.problem).noise.variances(x))(cloud.theta)
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


def _unravel(theta: Float[Array, "p"], problem: InverseProblem):
    return ravel_pytree(problem.unconstrain(problem.values()))[1](theta)


def _at(theta: Float[Array, "p"], problem: InverseProblem) -> InverseProblem:
    return problem.at(problem.constrain(_unravel(theta, problem)))


@eqx.filter_jit
def _physical(problem: InverseProblem, theta: Float[Array, "count p"]):
    return jax.vmap(lambda t: problem.constrain(_unravel(t, problem)))(theta)


def _tracked(cloud: Cloud, theta: Float[Array, "p"], own: Followed) -> Tracked:
    state = State(
        _at(theta, cloud.problem), cloud.observed, cloud.y, own.root, own.white, own.jitter
    )
    return Tracked(state, cloud.points, own.known, own.mean, own.variance)


def _own(tracked: Tracked) -> Followed:
    state = tracked.state
    return Followed(
        state.root, state.white, state.jitter, tracked.known, tracked.mean, tracked.variance
    )


@eqx.filter_jit
def _follow(theta: Float[Array, "particles p"], problem, observed, y, points) -> Followed:
    def one(theta):
        return _own(gp.tracked(gp.conditioned(_at(theta, problem), observed, y), points))

    return jax.lax.map(one, theta)


def _log_likelihood(theta: Float[Array, "p"], problem, observed, y) -> Float[Array, ""]:
    value = log_likelihood(_at(theta, problem), observed, y)
    return jnp.where(jnp.isfinite(value), value, -jnp.inf)


def _log_prior(theta: Float[Array, "p"], problem: InverseProblem) -> Float[Array, ""]:
    """In the unconstrained coordinates."""
    theta = _unravel(theta, problem)
    values, total = problem.constrain(theta), 0.0
    for name, prior in problem.unknowns().items():
        volume = dist.biject_to(prior.support).log_abs_det_jacobian(theta[name], values[name])
        total = total + prior.log_prob(values[name]) + jnp.sum(volume)
    return total


@eqx.filter_jit
def _likelihoods(theta: Float[Array, "particles p"], problem, observed, y):
    return jax.lax.map(lambda t: _log_likelihood(t, problem, observed, y), theta)


# --- moves -------------------------------------------------------------------------------------


@eqx.filter_jit
def _moved(
    key: Array,
    placed: Placed,
    log_weight: Float[Array, "n"],
    power: Float[Array, ""],
    problem: InverseProblem,
    before: Observed | None,
    observed: Observed,
    y: Array,
) -> Placed:
    """Particles drawn by their weights, then moved: of prior x before^(1 - power) x after^power.

    They move in two halves, each by proposals which the places of the other one suggest, so that
    the density is kept exactly (Goodman & Weare 2010) and no mode lives on its own descent.
    """

    def value(at: Placed) -> Float[Array, "n"]:
        prior = jax.vmap(lambda t: _log_prior(t, problem))(at.theta)
        density = prior + (1.0 - power) * at.before + power * at.after
        return jnp.where(jnp.isfinite(density), density, -jnp.inf)

    def likelihoods(theta, x) -> Float[Array, "n"]:
        return jax.vmap(lambda t: _log_likelihood(t, problem, x, y))(theta)

    def step(halves, of_step):
        key, jumps = of_step
        tell, accept = jax.random.split(key)
        (mine, at), others = halves
        # the density stands here once: it is what takes time to compile
        tried, correction = jax.lax.cond(jumps, _jump, _walk, tell, mine.theta, others[0].theta)
        old = jnp.zeros(len(tried)) if before is None else likelihoods(tried, before)
        new = Placed(tried, old, likelihoods(tried, observed))
        new_at = value(new)
        taken = jnp.log(jax.random.uniform(accept, at.shape)) < new_at - at + correction
        mine, at = jax.tree.map(
            lambda n, o: jnp.where(taken.reshape(-1, *[1] * (n.ndim - 1)), n, o),
            (new, new_at),
            (mine, at),
        )
        return (others, (mine, at)), None  # now it is the turn of the others

    draw, move = jax.random.split(key)
    rows = _systematic(draw, log_weight)
    start = jax.tree.map(lambda a: a[rows], placed)
    half, both = len(rows) // 2, (start, value(start))
    halves = jax.tree.map(lambda a: a[:half], both), jax.tree.map(lambda a: a[half:], both)
    jumps = jnp.tile(jnp.asarray([False, False, True, True]), ROUNDS)
    halves, _ = jax.lax.scan(step, halves, (jax.random.split(move, len(jumps)), jumps))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *halves)[0]


def _systematic(key: Array, log_weight: Float[Array, "n"]) -> Int[Array, "n"]:
    """Rows in a random order, each as often as its weight says, to within one (Kitagawa 1996)."""
    draw, order = jax.random.split(key)
    n = log_weight.size
    total = jnp.cumsum(jax.nn.softmax(log_weight))
    comb = (jax.random.uniform(draw) + jnp.arange(n)) / n
    rows = jnp.searchsorted(total / total[-1], comb, side="right")
    return jax.random.permutation(order, jnp.minimum(rows, n - 1))


def _spread(theta: Float[Array, "n p"]) -> Float[Array, "p p"]:
    """A root of the covariance of the particles, each coordinate in its own unit."""
    away = theta - jnp.mean(theta, axis=0)
    sd = jnp.sqrt(jnp.mean(away**2, axis=0))
    # of a coordinate in which all particles agree: about what rounding moves it
    rounding = jnp.finfo(theta.dtype).eps * jnp.max(jnp.abs(theta), axis=0)
    sd = jnp.maximum(sd, jnp.maximum(rounding, jnp.finfo(theta.dtype).tiny))
    away = away / sd
    correlation = away.T @ away / len(theta)
    return sd[:, None] * jnp.linalg.cholesky(correlation + 1e-6 * jnp.eye(len(sd)))


def _walk(key: Array, theta: Float[Array, "n p"], others: Float[Array, "k p"]):
    """Steps of many lengths about the best one of a Gaussian (Roberts et al. 1997)."""
    direction, length = jax.random.split(key)
    n, p = theta.shape
    scale = jnp.exp(jax.random.uniform(length, (n, 1), theta.dtype, -2.0, 1.2))
    z = jax.random.normal(direction, theta.shape, theta.dtype)
    return theta + 2.38 / np.sqrt(p) * scale * z @ _spread(others).T, jnp.zeros(n)


def _jump(key: Array, theta: Float[Array, "n p"], others: Float[Array, "k p"]):
    """To the neighbourhood of one of the others, wherever that is: draws from their kernel density
    estimate, and how much more probable it makes the old place than the new one."""
    which, direction, tail = jax.random.split(key, 3)
    (n, p), k = theta.shape, len(others)
    width = (4.0 / ((p + 2.0) * k)) ** (1.0 / (p + 4.0))  # Silverman 1986, eq. 4.14
    root, centre = width * _spread(others), jnp.mean(others, axis=0)

    def whitened(a):
        return jax.scipy.linalg.solve_triangular(root, (a - centre).T, lower=True).T

    def log_estimate(a):
        square = jnp.sum((whitened(a)[:, None] - whitened(others)) ** 2, axis=-1)
        return logsumexp(-0.5 * (TAILS + p) * jnp.log1p(square / TAILS), axis=1)

    z = jax.random.normal(direction, theta.shape, theta.dtype)
    # a sum of squares is compiled in a fraction of the time of jax.random.gamma
    stretch = jnp.mean(jax.random.normal(tail, (n, TAILS), theta.dtype) ** 2, axis=1)
    near = others[jax.random.randint(which, (n,), 0, k)]
    tried = near + z / jnp.sqrt(stretch)[:, None] @ root.T
    return tried, log_estimate(theta) - log_estimate(tried)
