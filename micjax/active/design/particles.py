"""What is known so far: weighted draws of the unknowns, and the data which they have seen.

A new datum reweights the draws. Where that leaves too few of them, it is let in by degrees, and
the draws are moved (`micjax.inference.errors.smc`). So several far modes are carried along. The
data stand in buffers of fixed capacity: one more compiles nothing.
"""

from collections.abc import Mapping
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from micjax.core.coordinates import Coordinates
from micjax.core.precision import double
from micjax.core.problem import InverseProblem, Theta, Values
from micjax.inference.errors import smc

HEALTHY = 0.5  # effective share of the draws, below which they are resampled and moved


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
        return smc.effective(self.log_weights)


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
    keys = jax.random.split(key, len(problem.unknowns()) + 1)
    draws = smc.drawn(keys[1:], problem, count)
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
    density = Rows(problem, particles.x, particles.y, particles.present - new, new)
    begun = smc.placed(_vectors(problem, particles.theta), density)
    end, log_weights, gained, accepted = smc.let_in(
        key, begun, particles.log_weights, density, smc.differences, enough=HEALTHY
    )
    return particles._replace(
        theta=_by_name(problem, end.theta),
        log_weights=jnp.asarray(log_weights),
        log_evidence=particles.log_evidence + gained,
        accepted=particles.accepted if accepted is None else accepted,
    )


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


class Rows(eqx.Module):
    """The density of the data in buffers, of which some rows are new."""

    problem: InverseProblem
    x: Array
    y: Array
    old: Float[Array, "capacity"]  # 1 for a row that was known before
    new: Float[Array, "capacity"]

    def __call__(self, theta: Float[Array, "p"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        coordinates = Coordinates(self.problem)
        rows = row_log_likelihood(coordinates.at(theta), self.x, self.y)

        def of(present):
            return jnp.sum(jnp.where(present > 0, present * rows, 0.0))

        return coordinates.log_density(theta) + of(self.old), of(self.new)


@eqx.filter_jit
def _constrained(problem: InverseProblem, theta: Theta) -> Values:
    return jax.vmap(problem.constrain)(theta)


@eqx.filter_jit
def _unconstrained(problem: InverseProblem, values: Values) -> Theta:
    return jax.vmap(problem.unconstrain)(values)


@eqx.filter_jit
def _vectors(problem: InverseProblem, theta: Theta) -> Float[Array, "count p"]:
    return jax.vmap(Coordinates(problem).vector)(theta)


@eqx.filter_jit
def _by_name(problem: InverseProblem, vectors: Float[Array, "count p"]) -> Theta:
    return jax.vmap(Coordinates(problem).theta)(vectors)
