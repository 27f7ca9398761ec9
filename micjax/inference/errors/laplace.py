"""Laplace: the Gaussian with the curvature of the posterior at the current values."""

import dataclasses
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Bool, Float

from micjax.core.coordinates import Coordinates
from micjax.core.devices import check_memory
from micjax.core.precision import in_float64
from micjax.core.problem import InverseProblem, Values, check_data, neg_log_joint
from micjax.inference.errors.density import potential
from micjax.inference.finite import NonFiniteError, non_finite
from micjax.inference.starts.draw import prior_draws

FLAT = 1e-10  # curvature relative to the unknown's own, below which float64 sees none
COLUMNS = 8  # of the Hessian at a time
CHECKED = 32  # unknown numbers, of more of which nobody looks whether the Gaussian is right
STRETCHES = np.array([0.7, 1.4, 2.0, 3.0, 4.5, 7.0, 10.0, 15.0, 22.0])  # standard deviations
TOO_NARROW = 1.25
NEAR = 0.05  # nats from the minimum
NINETY = 1.645  # standard deviations about the mean hold 90 %
PRIOR_RULES = 0.9  # a posterior this wide, in prior standard deviations, has learnt nothing


@dataclasses.dataclass(frozen=True)
class Laplace:
    """A Gaussian in the unconstrained coordinates of some unknowns; the others are held.

    Where the posterior falls off much more slowly than the Gaussian, as beyond the end of a scan,
    the Gaussian is `widened` until it holds what 90 % of the posterior are along this unknown.

    An unknown is not `identified` when the data leave a direction without curvature in which it
    takes part, or its standard deviation above 0.9 of the prior's.
    """

    problem: InverseProblem  # in float64, at the values it was made at
    names: list[str]
    mean: Float[np.ndarray, "d"]  # unconstrained, in the order of `names`
    covariance: Float[np.ndarray, "d d"]  # of a flat direction: the prior's, or 0 if improper
    unbounded: Bool[np.ndarray, "d"]  # these take part in a flat direction with an improper prior
    identified: dict[str, bool]
    left: float  # nats that a step to the minimum of this curvature would gain
    widened: dict[str, float]  # by how much, where the posterior is wider
    flat_directions: list[dict[str, float]]  # {name: its part}, parts squared add up to 1

    def sample(self, key: Array, n: int) -> dict[str, Float[np.ndarray, "n ..."]]:
        """`n` draws of the physical values."""
        with jax.enable_x64(True):
            variances, directions = np.linalg.eigh(self.covariance)
            root = directions * np.sqrt(np.maximum(variances, 0.0))
            unit = np.asarray(jax.random.normal(key, (n, len(self.mean))))
            theta = jax.device_put(self.mean + unit @ root.T)
            return jax.device_get(_physical(self.problem, tuple(self.names), theta))

    def sd(self) -> dict[str, Float[np.ndarray, "..."]]:
        """Standard deviations of the physical values, to first order; infinite where a direction
        is flat and its prior improper."""
        with jax.enable_x64(True):
            slope = jax.device_get(_slopes(self.problem, tuple(self.names), self.mean))
        return {
            n: np.where(
                np.any((j != 0) & self.unbounded, axis=-1),
                np.inf,
                np.sqrt(np.einsum("...i,ik,...k->...", j, self.covariance, j)),
            )
            for n, j in slope.items()
        }


def laplace(
    problem: InverseProblem,
    x,
    y,
    names: Sequence[str] | None = None,
    hessian: Float[ArrayLike, "d d"] | None = None,
) -> Laplace:
    """The Gaussian approximation of the posterior at the current values (make them the best first).

    In float64, by a dense Hessian: d unknown numbers cost d gradients, and the memory of the larger
    of 8 gradients and four matrices of d x d.

    **Arguments:**

    - `names`: the unknowns that take part (default: all); the others are held where they are.
    - `hessian`: in place of the dense one, in the order of `names`; see
        `micjax.inference.solvers.gauss_newton.expected_hessian`.

    **Raises:** `ValueError` for a name that is no unknown, or data that do not fit the prediction;
    `NonFiniteError` when the Hessian is not finite; `MemoryError` when there is no room for it.
    """
    with jax.enable_x64(True):
        problem, x, y = in_float64((problem, x, y))
        check_data(problem, x, y)
        if names is not None and not len(names):
            raise ValueError(f"names is empty; there are {sorted(problem.unknowns())}")
        coordinates, unknowns = Coordinates(problem, names), problem.unknowns()
        names = list(coordinates.names)
        theta = problem.unconstrain(problem.values())
        mean = coordinates.vector(theta)
        check_memory(f"Laplace errors of {mean.size} unknown numbers", 4 * 8 * mean.size**2)
        if hessian is None:
            hessian = _hessian(mean, problem, tuple(names), x, y)
        hessian = np.asarray(hessian, float)
        if hessian.shape != (mean.size, mean.size):
            raise ValueError(f"a Hessian of shape {hessian.shape} for {mean.size} unknown numbers")
        if not np.isfinite(hessian).all():
            raise NonFiniteError(f"the Hessian is not finite: {non_finite(theta, problem, x, y)}")
        # NaN among the data may leave no trace in it
        if not np.isfinite(_loss(theta, problem, x, y)):
            raise NonFiniteError(f"the loss is not finite: {non_finite(theta, problem, x, y)}")
        prior_sd = np.concatenate([prior_sd_of(unknowns[n], theta[n]) for n in names])
        owner = coordinates.owner
        covariance, flat, unbounded = _invert(hessian, prior_sd)
        slope = np.asarray(_slope(mean, problem, tuple(names), x, y))
        left = float(0.5 * slope @ covariance @ slope)
        factors = np.ones(mean.size)
        if left < NEAR:  # elsewhere the slope says which way is down, not how wide a minimum is
            factors = _stretch(mean, covariance, problem, tuple(names), x, y)
    sd = np.sqrt(np.diag(covariance))  # no wider than the prior; 0 where that is improper
    most = np.divide(prior_sd, sd, out=np.ones_like(sd), where=sd > 0)
    factors = np.minimum(factors, np.maximum(most, 1.0))
    covariance = covariance * factors[:, None] * factors
    wide = np.sqrt(np.diag(covariance)) > PRIOR_RULES * prior_sd
    parts = [{n: float(np.sqrt(np.sum(v[owner == n] ** 2))) for n in names} for v in flat.T]
    carried = [{n: part for n, part in direction.items() if part > 0.1} for direction in parts]
    identified = {
        n: not wide[owner == n].any() and not any(n in direction for direction in carried)
        for n in names
    }
    widened = {n: float(factors[owner == n].max()) for n in names if factors[owner == n].max() > 1}
    return Laplace(
        problem,
        names,
        np.asarray(mean),
        covariance,
        unbounded,
        identified,
        left,
        widened,
        carried,
    )


@eqx.filter_jit
def _slope(mean: Array, problem: InverseProblem, names: tuple[str, ...], x, y) -> Array:
    """Of what a fit makes least."""
    coordinates = Coordinates(problem, names)
    return jax.grad(lambda m: neg_log_joint(coordinates.theta(m), problem, x, y))(mean)


def _stretch(mean: Array, covariance: np.ndarray, problem, names, x, y) -> np.ndarray:
    """By how much the Gaussian is too narrow about each unknown number: the others stay, or move
    with it as they are correlated, and whatever is lower bounds the profile (Venzon and Moolgavkar
    1988, Appl. Stat. 37, 87) from above."""
    sd = np.sqrt(np.diag(covariance))
    if not 0 < len(sd) <= CHECKED or not sd.min() > 0:
        return np.ones(len(sd))
    ways = np.stack([(covariance / sd).T, np.diag(sd)])
    along = np.concatenate([-STRETCHES[::-1], STRETCHES])
    moves = np.multiply.outer(along, ways)  # [stretch, way, number, d]
    rises = np.asarray(_rises(mean, jnp.asarray(moves.reshape(-1, len(sd))), problem, names, x, y))
    rises = np.where(np.isfinite(rises), rises, np.inf).reshape(moves.shape[:-1]).min(axis=1)
    factors = np.array([_holding_ninety(along, rise) for rise in rises.T]) / NINETY
    return np.where(factors > TOO_NARROW, factors, 1.0)


def _holding_ninety(along: np.ndarray, rise: np.ndarray) -> float:
    """How far from 0, to both sides, 90 % of the density exp(-rise) lie."""
    fine = np.linspace(along[0], along[-1], 4001)
    nats = np.interp(
        fine,
        np.insert(along, len(along) // 2, 0.0),
        np.insert(np.minimum(rise, 700.0), len(along) // 2, 0.0),
    )
    order = np.argsort(np.abs(fine))
    mass = np.cumsum(np.exp(-(nats - nats.min()))[order])
    return float(np.abs(fine[order])[np.searchsorted(mass, 0.9 * mass[-1])])


@eqx.filter_jit
def _rises(mean: Array, moves: Array, problem: InverseProblem, names: tuple[str, ...], x, y):
    """Of minus the logarithm of the posterior, `[move]`."""
    coordinates = Coordinates(problem, names)

    def height(m):
        return potential(coordinates.theta(m), problem, x, y)

    return jax.lax.map(lambda move: height(mean + move) - height(mean), moves)


def _invert(hessian: np.ndarray, prior_sd: np.ndarray):
    """The covariance, the flat directions as columns, and which elements nothing bounds.

    Each unknown is measured in its own curvature, so that units do not decide what is flat.
    """
    own = np.abs(np.diag(hessian))
    scale = np.where(own > 0, own, 1.0) ** -0.5
    values, vectors = np.linalg.eigh(hessian * scale[:, None] * scale)
    flat = values <= FLAT * max(values.max(initial=0.0), 1e-300)
    # a flat direction is as wide as the prior makes it; an improper prior gives 1 / inf = 0
    taking_part = np.where(np.abs(vectors) > 1e-6, vectors, 0.0)  # the rest is rounding
    prior = ((scale[:, None] * taking_part / prior_sd[:, None]) ** 2).sum(axis=0)
    precision = np.where(flat, prior, values)
    variances = np.where(precision > 0, 1.0 / np.where(precision > 0, precision, 1.0), 0.0)
    root = scale[:, None] * vectors * np.sqrt(variances)
    directions = scale[:, None] * vectors[:, flat]
    unbounded = (taking_part[:, flat & (prior == 0)] != 0).any(axis=1)
    return root @ root.T, directions / np.linalg.norm(directions, axis=0), unbounded


def prior_sd_of(prior: dist.Distribution, theta: Array) -> np.ndarray:
    """Standard deviation of the prior in unconstrained coordinates, from draws; inf if improper."""
    draws = prior_draws(prior, jax.random.key(0), (1000,))
    if draws is None:
        return np.full(theta.size, np.inf)
    return np.asarray(dist.biject_to(prior.support).inv(draws).std(axis=0)).ravel()


_loss = eqx.filter_jit(neg_log_joint)


@eqx.filter_jit
def _hessian(mean: Array, problem: InverseProblem, names: tuple[str, ...], x, y) -> Array:
    """Column by column, `COLUMNS` of them side by side: each needs the memory of a gradient."""
    coordinates = Coordinates(problem, names)
    gradient = jax.grad(lambda m: potential(coordinates.theta(m), problem, x, y))
    directions = jnp.eye(mean.size, dtype=mean.dtype)
    return jax.lax.map(
        lambda direction: jax.jvp(gradient, (mean,), (direction,))[1],
        directions,
        batch_size=min(COLUMNS, mean.size),
    )


def _values(problem: InverseProblem, names: tuple[str, ...], flat: Array) -> Values:
    values = Coordinates(problem, names).values(flat)
    return {n: values[n] for n in names}


@eqx.filter_jit
def _physical(problem: InverseProblem, names: tuple[str, ...], flat: Array) -> Values:
    return jax.vmap(lambda m: _values(problem, names, m))(flat)


@eqx.filter_jit
def _slopes(problem: InverseProblem, names: tuple[str, ...], mean: Array) -> Values:
    return jax.jacfwd(lambda m: _values(problem, names, m))(jnp.asarray(mean))
