"""Sequential Monte Carlo: particles that follow a posterior while data are let in by degrees.

Weighted particles of prior x p(old data) become those of prior x p(old data) p(new data)^power,
with a power that grows from 0 to 1 by steps which leave enough of them effective (Del Moral,
Doucet & Jasra 2006, J. R. Stat. Soc. B 68, 411). After a step they are drawn anew by their weights
and moved by Metropolis-Hastings. The mean weights multiply up to the evidence.

There are two ways to move. `walks_and_jumps` is for few particles of a costly likelihood: hardly a
proposal is wasted, each costs k^2. `differences` is for many particles: a proposal costs nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp
from jaxtyping import Array, ArrayLike, Float, Int

from micjax.core.coordinates import Coordinates
from micjax.core.precision import double
from micjax.core.problem import InverseProblem, Values, log_likelihood
from micjax.inference.finite import NonFiniteError, non_finite
from micjax.inference.starts.draw import prior_draws

ENOUGH = 0.7  # of the particles: with fewer effective ones they are drawn anew
ROUNDS = 6  # of moves then: each particle walks once and jumps once in a round
TAILS = 5  # degrees of freedom of the proposals to jump to
STEPS = 10  # of every particle along differences of others
TOGETHER = 256  # particles side by side, which bounds the memory

# of one particle: log prior (of the vector) + log p(old data), and log p(new data | old data)
Density = Callable[[Float[Array, "p"]], tuple[Float[Array, ""], Float[Array, ""]]]


class Placed(NamedTuple):
    """Particles in the order of `Coordinates`, and their densities."""

    theta: Float[Array, "n p"]
    old: Float[Array, "n"]  # log prior + log p(old data)
    new: Float[Array, "n"]  # log p(new data | old data)

    def at(self, power: Float[Array, ""]) -> Float[Array, "n"]:
        density = self.old + power * self.new
        return jnp.where(jnp.isfinite(density), density, -jnp.inf)


class Data(eqx.Module):
    """The density of all data `(x, y)` of a problem, or of what they have beyond `(before, y)`."""

    problem: InverseProblem
    x: Any
    y: Any
    before: Any = None

    def __call__(self, theta: Float[Array, "p"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        coordinates = Coordinates(self.problem)
        problem = coordinates.at(theta)

        def likelihood(x) -> Float[Array, ""]:
            value = log_likelihood(problem, x, self.y)
            return jnp.where(jnp.isfinite(value), value, -jnp.inf)

        if self.before is None:
            return coordinates.log_density(theta), likelihood(self.x)
        # one after the other: the likelihood stands here once, which halves the time to compile it
        both = jax.tree.map(lambda *leaves: jnp.stack(leaves), self.before, self.x)
        old, new = jax.lax.map(likelihood, both)
        return coordinates.log_density(theta) + old, new - old


# --- from the priors to the posterior ----------------------------------------------------------


@double
def from_priors(
    problem: InverseProblem, x, y, key: Array, *, particles: int = 128
) -> tuple[Float[Array, "particles p"], Float[Array, ""]]:
    """Equally likely particles of the posterior, in the order of `Coordinates`, and log p(y).

    **Arguments:**

    - `particles`: an even number.

    **Raises:** `ValueError` for an improper prior, or an odd number of particles;
    `NonFiniteError` when the likelihood is finite for none of the draws.
    """
    if particles < 4 or particles % 2:
        raise ValueError(f"{particles} particles; they move in two halves, so it has to be even")
    draw, key = jax.random.split(key)
    density, theta = Data(problem, x, y), _drawn_vectors(draw, problem, particles)
    start = placed(theta, density)
    if not np.isfinite(start.new).any():
        theta = Coordinates(problem).theta(theta[0])
        fault = non_finite(theta, problem, x, y)
        raise NonFiniteError(f"the likelihood is finite for none of {particles} draws: {fault}")
    end, _, log_evidence, _ = let_in(
        key, start, equal(particles), density, walks_and_jumps, settle=True
    )
    return end.theta, jnp.asarray(log_evidence, float)


@eqx.filter_jit
def _drawn_vectors(key: Array, problem: InverseProblem, count: int) -> Float[Array, "count p"]:
    draws = drawn(jax.random.split(key, len(problem.unknowns())), problem, count)
    return jax.vmap(lambda v: Coordinates(problem).vector(problem.unconstrain(v)))(draws)


def drawn(keys: Array, problem: InverseProblem, count: int) -> Values:
    """`count` draws from the prior of each unknown, one key for each.

    **Raises:** `ValueError` for an improper prior.
    """
    unknowns = problem.unknowns()
    draws = {
        n: prior_draws(p, k, (count,)) for k, (n, p) in zip(keys, unknowns.items(), strict=True)
    }
    if improper := sorted(n for n, v in draws.items() if v is None):
        raise ValueError(f"improper priors of {improper}: nothing can be drawn from them")
    return draws


# --- letting data in by degrees ----------------------------------------------------------------


@eqx.filter_jit
def placed(theta: Float[Array, "n p"], density: Density) -> Placed:
    """The particles and their densities."""
    return _placed(theta, density)


def _placed(theta: Float[Array, "n p"], density: Density) -> Placed:
    if len(theta) <= TOGETHER:
        return Placed(theta, *jax.vmap(density)(theta))
    return Placed(theta, *jax.lax.map(density, theta, batch_size=TOGETHER))


def let_in(
    key: Array,
    start: Placed,
    log_weight: Float[ArrayLike, "n"],
    density: Density,
    moves: Callable,
    *,
    enough: float = ENOUGH,
    settle: bool = False,
) -> tuple[Placed, Float[np.ndarray, "n"], float, Float[Array, ""] | None]:
    """Particles of the old and the new data, from weighted ones of the old data.

    **Arguments:**

    - `log_weight`: their exponentials add up to 1.
    - `moves`: `walks_and_jumps` or `differences`.
    - `enough`: share of the particles; with fewer effective ones they are drawn anew and moved.
    - `settle`: they are, at the end, anyway.

    **Returns:** the particles, their log weights, log p(new data | old data), and which share of
    the last moves was made, None where none was tried.

    **Raises:** `NonFiniteError` when the likelihood of no particle is finite.
    """
    now, log_weight, rest, log_evidence, moved = start, np.asarray(log_weight), 1.0, 0.0, None
    while rest > 0.0:
        key, move = jax.random.split(key)
        gain = np.nan_to_num(np.asarray(now.new), nan=-np.inf, neginf=-np.inf)
        if not np.isfinite(gain + log_weight).any():
            raise NonFiniteError("no draw explains the new data: their likelihood is zero or NaN")
        step = _bearable(gain, log_weight, rest, enough)
        rest -= step
        log_weight, mean = normalised(log_weight + step * gain)
        log_evidence += mean
        if rest > 0.0 or settle or effective(log_weight) < enough * len(gain):
            now, moved = moves(move, now, log_weight, jnp.asarray(1.0 - rest, float), density)
            log_weight = equal(len(gain))
    return now, log_weight, log_evidence, moved


def equal(count: int) -> Float[np.ndarray, "count"]:
    """Log weights that are all the same."""
    return np.full(count, -np.log(count))


def normalised(log_weight: Float[np.ndarray, "n"]) -> tuple[Float[np.ndarray, "n"], float]:
    """Log weights whose exponentials add up to 1, and the logarithm of what they added up to."""
    highest = log_weight.max()
    total = highest + np.log(np.sum(np.exp(log_weight - highest)))
    return log_weight - total, float(total)


def effective(log_weight: Float[ArrayLike, "n"]) -> float:
    """As many particles of equal weight are worth as much: 1 / sum w^2 (Kong 1992)."""
    return float(1.0 / np.sum(np.exp(2.0 * np.asarray(log_weight))))


def _bearable(gain: np.ndarray, log_weight: np.ndarray, most: float, enough: float) -> float:
    """The largest step of the power that leaves enough effective particles, by bisection."""
    highest, possible = gain.max(), np.isfinite(gain).sum()

    def bearable(step: float) -> bool:
        weight = np.exp(log_weight + step * (gain - highest))
        return bool(weight.sum() ** 2 / (weight**2).sum() >= enough * possible)

    if bearable(most):
        return most
    low, high = 0.0, most
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if bearable(middle) else (low, middle)
    return max(low, most * 0.5**50)  # never nothing at all, or there would be no end


def systematic(key: Array, log_weight: Float[Array, "count"], n: int) -> Int[Array, "n"]:
    """Rows in ascending order, each as often as its weight says, to within one (Kitagawa 1996)."""
    ends = jnp.cumsum(jnp.exp(log_weight))
    comb = (jnp.arange(n) + jax.random.uniform(key)) / n * ends[-1]
    return jnp.minimum(jnp.searchsorted(ends, comb, side="right"), len(ends) - 1)


# --- moves -------------------------------------------------------------------------------------


def _metropolis(key, now: Placed, tried, correction, power, density) -> tuple[Placed, Array]:
    """The particles where a proposal was accepted, and the share of those that were."""
    new = _placed(tried, density)
    rise = new.at(power) - now.at(power) + correction
    yes = jnp.log(jax.random.uniform(key, rise.shape)) < rise
    kept = jax.tree.map(
        lambda n, o: jnp.where(yes.reshape(-1, *[1] * (n.ndim - 1)), n, o), new, now
    )
    return kept, jnp.mean(yes, dtype=rise.dtype)


@eqx.filter_jit
def walks_and_jumps(
    key: Array, now: Placed, log_weight: Float[Array, "n"], power: Array, density: Density
) -> tuple[Placed, Float[Array, ""]]:
    """Particles drawn by their weights, then moved at this power of the new data; an even number.

    They move in two halves, each by proposals which the places of the other one suggest, so that
    the density is kept exactly (Goodman & Weare 2010) and no mode lives on its own descent.
    """
    draw, move = jax.random.split(key)
    draw, order = jax.random.split(draw)
    rows = jax.random.permutation(order, systematic(draw, log_weight, len(log_weight)))
    half, now = len(rows) // 2, jax.tree.map(lambda a: a[rows], now)
    halves = jax.tree.map(lambda a: a[:half], now), jax.tree.map(lambda a: a[half:], now)

    def step(halves, of_step):
        key, jumps = of_step
        propose, accept = jax.random.split(key)
        mine, others = halves
        # the density stands here once: it is what takes time to compile
        tried, correction = jax.lax.cond(jumps, _jump, _walk, propose, mine.theta, others.theta)
        mine, accepted = _metropolis(accept, mine, tried, correction, power, density)
        return (others, mine), accepted  # now it is the turn of the others

    jumps = jnp.tile(jnp.asarray([False, False, True, True]), ROUNDS)
    halves, accepted = jax.lax.scan(step, halves, (jax.random.split(move, len(jumps)), jumps))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *halves), jnp.mean(accepted)


@eqx.filter_jit
def differences(
    key: Array, now: Placed, log_weight: Float[Array, "n"], power: Array, density: Density
) -> tuple[Placed, Float[Array, ""]]:
    """Particles drawn by their weights, then moved at this power of the new data: random walks
    along the difference of two others (ter Braak 2006), mostly shortened."""
    which, walk = jax.random.split(key)
    count = len(log_weight)
    now = jax.tree.map(lambda a: a[systematic(which, log_weight, count)], now)
    crowd = now.theta  # stands still, so that each walk keeps the posterior

    def step(now, key):
        pair, length, leap, accept = jax.random.split(key, 4)
        a, b = jax.random.randint(pair, (2, count), 0, count)
        shorter = jnp.exp(jax.random.uniform(length, (count,), minval=-3.0, maxval=0.5))
        # the whole difference of two particles leads from one mode to another
        size = jnp.where(jax.random.uniform(leap, (count,)) < 0.1, 1.0, shorter)
        tried = now.theta + size[:, None] * (crowd[a] - crowd[b])
        return _metropolis(accept, now, tried, 0.0, power, density)

    now, accepted = jax.lax.scan(step, now, jax.random.split(walk, STEPS))
    return now, jnp.mean(accepted)


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
