"""What is known so far: weighted draws of the unknowns, and the data which they have seen.

A new datum reweights the draws. Where that leaves too few of them, it is let in by degrees
(tempering), and at each degree the draws are resampled and moved by random walks that keep the
posterior of all data (Del Moral, Doucet & Jasra 2006, J. R. Stat. Soc. B 68, 411). So several far
modes are carried along. The data stand in buffers of fixed capacity: one more compiles nothing.
"""

from collections.abc import Mapping
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float, Int

from micjax.active.gp.process import double
from micjax.core.problem import InverseProblem, Theta, Values
from micjax.inference.finite import NonFiniteError
from micjax.inference.starts.draw import prior_draws

HEALTHY = 0.5  # effective share of the draws, below which they are resampled and moved
MOVES = 10  # of every draw after each resampling
BATCH = 256  # draws side by side, which bounds the memory


class Particles(NamedTuple):
    """Weighted draws of the posterior, in unconstrained coordinates, with the data behind them."""

    theta: Theta  # {name: [count, ...]}
    log_weights: Float[Array, "count"]  # their exponentials add up to 1
    x: Array  # [capacity, ...]; free rows repeat some setting
    y: Array  # [capacity, ...]
    present: Float[Array, "capacity"]  # 1 for a measured row, 0 for a free one
    log_evidence: Float[Array, ""]  # log p(all y)
    accepted: Float[Array, ""]  # share of the last moves that were made

    def values(self, problem: InverseProblem) -> Values:
        """The draws as physical values, {name: [count, ...]}."""
        with jax.enable_x64(True):
            return _constrained(problem, self.theta)

    def mean(self, problem: InverseProblem) -> dict[str, np.ndarray]:
        weights = np.exp(self.log_weights)
        return {n: np.asarray(np.tensordot(weights, v, 1)) for n, v in self.values(problem).items()}

    def sd(self, problem: InverseProblem) -> dict[str, np.ndarray]:
        weights, mean = np.exp(self.log_weights), self.mean(problem)
        return {
            n: np.asarray(np.sqrt(np.tensordot(weights, (np.asarray(v) - mean[n]) ** 2, 1)))
            for n, v in self.values(problem).items()
        }

    def effective(self) -> float:
        """Effective number of draws, 1 / sum of the squared weights."""
        return float(1 / np.exp(2 * np.asarray(self.log_weights)).sum())


@double
def start(
    key: Array, problem: InverseProblem, x, *, count: int = 1024, capacity: int = 16
) -> Particles:
    """Draws of the priors, which have seen no data.

    **Arguments:**

    - `x`: settings of the kind that will be measured, `[n, ...]`; only the first row is looked at.
    - `count`: how many draws.
    - `capacity`: rows for data; doubled when they are used up.

    **Raises:** `ValueError` for an improper prior, from which nothing can be drawn, or a capacity
    below 1.
    """
    unknowns = problem.unknowns()
    keys = jax.random.split(key, len(unknowns) + 1)
    draws = {
        n: prior_draws(p, k, (count,)) for k, (n, p) in zip(keys[1:], unknowns.items(), strict=True)
    }
    if improper := sorted(n for n, v in draws.items() if v is None):
        raise ValueError(f"improper priors of {improper}: planning needs priors with draws")
    return _particles(keys[0], problem, draws, jnp.asarray(x)[:1], capacity)


@double
def adopt(
    problem: InverseProblem,
    draws: Mapping[str, Float[ArrayLike, "count ..."]],
    x,
    y,
    *,
    capacity: int = 16,
) -> Particles:
    """Particles of posterior draws made elsewhere, `micjax.nuts(...).flat()`, and the data (x, y)
    behind them; `log_evidence` counts what is learnt from then on."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    _checked(x, y)
    capacity = max(capacity, 1 << max(len(x) - 1, 0).bit_length())
    draws = {n: jnp.asarray(draws[n]) for n in problem.unknowns()}
    return _placed(_particles(jax.random.key(0), problem, draws, x[:1], capacity), x, y, 0)


def _particles(key: Array, problem: InverseProblem, draws: Values, x, capacity: int) -> Particles:
    if capacity < 1:
        raise ValueError(f"capacity is {capacity}; it has to be 1 or more rows")
    count = len(next(iter(draws.values())))
    # data that can occur: a masked row must not be NaN either
    y = problem.noise(problem.forward(x)).sample(key)
    if jnp.shape(y)[:1] != (1,):
        raise ValueError(
            f"the data of one row of x have shape {jnp.shape(y)}: rows of y must be those of x"
        )
    return Particles(
        theta=_unconstrained(problem, draws),
        log_weights=jnp.full(count, -jnp.log(float(count))),
        x=jnp.repeat(x, capacity, axis=0),
        y=jnp.repeat(y, capacity, axis=0),
        present=jnp.zeros(capacity),
        log_evidence=jnp.zeros(()),
        accepted=jnp.ones(()),
    )


@double
def update(key: Array, particles: Particles, problem: InverseProblem, x, y) -> Particles:
    """The particles after more data.

    **Arguments:**

    - `x`, `y`: the new rows, `[n, ...]`; compiled once for each n.

    **Raises:** `ValueError` for rows that are not of the shape of the others or not finite;
    `NonFiniteError` when no draw explains them.
    """
    x, y = jnp.asarray(x, particles.x.dtype), jnp.asarray(y, particles.y.dtype)
    _checked(x, y)
    for name, new, old in (("x", x, particles.x), ("y", y, particles.y)):
        if new.shape[1:] != old.shape[1:]:
            raise ValueError(f"rows of {name} have shape {new.shape[1:]} and not {old.shape[1:]}")
    count = int(particles.present.sum())
    while count + len(x) > len(particles.present):
        particles = _doubled(particles)
    particles = _placed(particles, x, y, count)
    new = jnp.zeros_like(particles.present).at[count : count + len(x)].set(1.0)
    after = _absorbed(key, particles, new, problem)
    if not np.isfinite(after.log_weights).all():
        raise NonFiniteError("no draw explains the new data: their likelihood is zero or NaN")
    return after


def _checked(x: Array, y: Array) -> None:
    if len(x) != len(y):
        raise ValueError(f"{len(x)} rows of x and {len(y)} of y")
    for name, values in (("x", x), ("y", y)):
        rows = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
        if rows.size:
            raise ValueError(
                f"{name} holds NaN or infinity in rows {rows[:8].tolist()}: leave them out"
            )


def _placed(particles: Particles, x: Array, y: Array, at: int) -> Particles:
    rows = at + np.arange(len(x))
    return particles._replace(
        x=particles.x.at[rows].set(x),
        y=particles.y.at[rows].set(y),
        present=particles.present.at[rows].set(1.0),
    )


def _doubled(particles: Particles) -> Particles:
    return particles._replace(
        x=jnp.concatenate([particles.x, particles.x]),
        y=jnp.concatenate([particles.y, particles.y]),
        present=jnp.concatenate([particles.present, jnp.zeros_like(particles.present)]),
    )


def row_log_likelihood(problem: InverseProblem, x, y) -> Float[Array, "n"]:
    """log p(y_i | x_i) of each row, at the current values.

    **Raises:** `ValueError` when the noise model has another number of rows.
    """
    log_p = problem.noise(problem.forward(x)).log_prob(y)
    return by_row(log_p, len(x))


def by_row(log_p: Float[Array, "..."], rows: int) -> Float[Array, "n"]:
    if jnp.shape(log_p)[:1] != (rows,):
        raise ValueError(
            f"the noise model gives log_prob of shape {jnp.shape(log_p)} for {rows} rows of x; "
            "its first axis must be the measurements"
        )
    return log_p.reshape(rows, -1).sum(axis=1)


def choose(key: Array, log_weights: Float[Array, "count"], n: int) -> Int[Array, "n"]:
    """Indices of `n` draws by systematic resampling (Kitagawa 1996), in ascending order."""
    ends = jnp.cumsum(jnp.exp(log_weights))
    at = (jnp.arange(n) + jax.random.uniform(key)) / n * ends[-1]
    return jnp.minimum(jnp.searchsorted(ends, at), len(ends) - 1)


# --- letting data in ----------------------------------------------------------------------------


@eqx.filter_jit
def _absorbed(
    key: Array, particles: Particles, new: Float[Array, "capacity"], problem: InverseProblem
) -> Particles:
    first = {n: t[0] for n, t in particles.theta.items()}
    _, named = ravel_pytree(first)
    flat = jax.vmap(lambda t: ravel_pytree(t)[0])(particles.theta)
    count, size = flat.shape

    def density(point):
        """log p(theta) + log p(old data | theta), and log p(new data | theta)."""
        theta = named(point)
        values = problem.constrain(theta)
        rows = row_log_likelihood(problem.at(values), particles.x, particles.y)

        def seen(present):
            return jnp.sum(jnp.where(present > 0, present * rows, 0.0))

        log_prior = sum(
            p.log_prob(values[n])
            + jnp.sum(dist.biject_to(p.support).log_abs_det_jacobian(theta[n], values[n]))
            for n, p in problem.unknowns().items()
        )
        return log_prior + seen(particles.present - new), seen(new)

    def densities(flat):
        old, fresh = jax.lax.map(density, flat, batch_size=BATCH)
        return _lowest(old), _lowest(fresh)

    def move(state, key, degree, crowd):
        """A random walk along the difference of two others (ter Braak 2006), mostly shortened."""
        flat, old, fresh = state
        pair, length, leap, toss = jax.random.split(key, 4)
        a, b = jax.random.randint(pair, (2, count), 0, count)
        shorter = jnp.exp(jax.random.uniform(length, (count,), minval=-3.0, maxval=0.5))
        # the whole difference of two draws leads from one mode to another
        step = jnp.where(jax.random.uniform(leap, (count,)) < 0.1, 1.0, shorter)
        tried = flat + step[:, None] * (crowd[a] - crowd[b])
        tried_old, tried_fresh = densities(tried)
        rise = tried_old - old + degree * (tried_fresh - fresh)
        yes = jnp.log(jax.random.uniform(toss, (count,))) < rise
        kept = jnp.where(yes[:, None], tried, flat)
        return (
            (kept, jnp.where(yes, tried_old, old), jnp.where(yes, tried_fresh, fresh)),
            jnp.mean(yes, dtype=flat.dtype),
        )

    def refreshed(key, state, degree, log_weights):
        which, walk = jax.random.split(key)
        state = jax.tree.map(lambda a: a[choose(which, log_weights, count)], state)
        crowd = state[0]  # stands still, so that each walk keeps the posterior
        state, accepted = jax.lax.scan(
            lambda s, k: move(s, k, degree, crowd), state, jax.random.split(walk, MOVES)
        )
        return state, jnp.full(count, -jnp.log(float(count))), accepted.mean()

    def advance(carry):
        key, degree, state, log_weights, log_evidence, accepted = carry
        key, now = jax.random.split(key)
        by = _degree(log_weights, state[2], 1.0 - degree)
        log_weights = log_weights + by * state[2]
        log_evidence = log_evidence + jax.nn.logsumexp(log_weights)
        log_weights = jax.nn.log_softmax(log_weights)
        state, log_weights, accepted = jax.lax.cond(
            _effective(log_weights) <= HEALTHY * count * 1.001,
            lambda: refreshed(now, state, degree + by, log_weights),
            lambda: (state, log_weights, accepted),
        )
        return key, degree + by, state, log_weights, log_evidence, accepted

    start = (
        key,
        jnp.zeros(()),
        (flat, *densities(flat)),
        particles.log_weights,
        particles.log_evidence,
        particles.accepted,
    )
    *_, state, log_weights, log_evidence, accepted = jax.lax.while_loop(
        lambda carry: (carry[1] < 1.0) & jnp.isfinite(carry[4]), advance, start
    )
    return particles._replace(
        theta=jax.vmap(named)(state[0]),
        log_weights=log_weights,
        log_evidence=log_evidence,
        accepted=accepted,
    )


def _effective(log_weights: Float[Array, "count"]) -> Float[Array, ""]:
    """Effective number of normalised weights."""
    return jnp.exp(-jax.nn.logsumexp(2 * log_weights))


def _degree(log_weights, fresh, left) -> Float[Array, ""]:
    """How much of what is left of the new data can be let in while enough draws stay effective."""

    def enough(by):
        return _effective(jax.nn.log_softmax(log_weights + by * fresh)) >= HEALTHY * len(fresh)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        return jnp.where(enough(middle), middle, low), jnp.where(enough(middle), high, middle)

    low, _ = jax.lax.fori_loop(0, 40, halve, (jnp.zeros(()), left))
    # never nothing at all, or the loop would not end
    return jnp.where(enough(left), left, jnp.maximum(low, 0.5**40 * left))


def _lowest(log_p: Float[Array, "count"]) -> Float[Array, "count"]:
    """NaN, where the forward model has no answer, as a density of zero."""
    return jnp.where(jnp.isnan(log_p), -jnp.inf, log_p)


@eqx.filter_jit
def _constrained(problem: InverseProblem, theta: Theta) -> Values:
    return jax.vmap(problem.constrain)(theta)


@eqx.filter_jit
def _unconstrained(problem: InverseProblem, values: Values) -> Theta:
    return jax.vmap(problem.unconstrain)(values)
