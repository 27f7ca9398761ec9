"""Draws from the posterior of a few unknowns, where a Gaussian about the best values is not enough.

Points are drawn from the Gaussian and the priors, weighed by how much more likely they are in the
posterior than to be drawn, and drawn again about those that weigh most until enough of them count
(population Monte Carlo: Cappe et al. 2004, J. Comput. Graph. Stat. 13, 907), all rounds weighed by
their common density (Cornuet et al. 2012, Scand. J. Stat. 39, 798). Nothing is lost where the
Gaussian is right, tails and other maxima are found where it is not, and the number of draws that
count says whether to believe any of it.
"""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from scipy.special import gammaln, logsumexp

from micjax.core.coordinates import Coordinates
from micjax.core.precision import in_float64
from micjax.core.problem import InverseProblem, neg_log_joint
from micjax.inference.errors.density import potential
from micjax.inference.errors.laplace import PRIOR_RULES, Laplace
from micjax.inference.starts.draw import prior_draws

MOST = 12  # unknown numbers: of more, too few points come near the posterior
MOST_DATA = 10_000  # of more the posterior is near a Gaussian, and predictions take their time
ROUND = 512  # points of a round
ROUNDS = 8  # at most
FROM_PRIOR = 0.25  # of the first of them
TAILS = 5  # degrees of freedom of what points are drawn from
ENOUGH = 300  # draws that count
KERNELS = 128  # that a round draws about
FEWEST = 100  # draws that count, by flattened weights, when these are chosen
DRAWS = 1000
TOO_NARROW = 1.25  # of which something is said
NINETY = 1.645  # standard deviations about the mean of a Gaussian hold 90 %

Density = Callable[[Float[np.ndarray, "n d"]], Float[np.ndarray, "n"]]  # its logarithm


def weighed(gaussian: Laplace, x, y) -> Laplace:
    """The Laplace approximation with draws of the posterior, of which `effective` count.

    What is not identified is decided anew, and `widened` says which errors grew by how much. More
    than 12 unknown numbers, those that nothing bounds, and more than 10,000 data are left to the
    Gaussian.

    **Arguments:**

    - `x`, `y`: the data that it was made of.
    """
    sd = np.sqrt(np.diag(gaussian.covariance))
    if (
        np.size(y) > MOST_DATA
        or not 0 < len(sd) <= MOST
        or gaussian.unbounded.any()
        or not sd.min() > 0
    ):
        return gaussian
    names = tuple(gaussian.names)
    with jax.enable_x64(True):
        problem, x, y = in_float64((gaussian.problem, x, y))

        def height(unit: np.ndarray) -> np.ndarray:
            points = jnp.asarray(gaussian.mean + sd * unit)
            rises = np.array(_rises(jnp.asarray(gaussian.mean), points, problem, names, x, y))
            lower.append(float(np.nanmin(rises[:, 1])) if np.isfinite(rises).any() else np.inf)
            return np.where(np.isfinite(rises[:, 0]), -rises[:, 0], -np.inf)

        lower: list[float] = []

        prior = _prior(problem, names)
        # in units of the Gaussian's own widths
        away = None if prior is None else (prior - gaussian.mean) / sd
        shape = gaussian.covariance / np.outer(sd, sd)
        unit, log_weight = _population(height, shape, away)
    points, better = gaussian.mean + sd * unit, -min(lower)
    effective = _count(log_weight)
    if effective < FEWEST:
        return dataclasses.replace(gaussian, effective=effective, better=better)
    rows = np.searchsorted(np.cumsum(_shares(log_weight)), (np.arange(DRAWS) + 0.5) / DRAWS)
    draws = points[np.minimum(rows, len(points) - 1)]
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    wide = (high - low) / (2.0 * NINETY)
    owner = Coordinates(problem, names).owner
    grown = {n: float(np.max((wide / sd)[owner == n])) for n in names}
    vague = wide > PRIOR_RULES * gaussian.prior_sd
    return dataclasses.replace(
        gaussian,
        draws=draws,
        effective=effective,
        better=better,
        widened={n: factor for n, factor in grown.items() if factor > TOO_NARROW},
        identified={n: ok and not vague[owner == n].any() for n, ok in gaussian.identified.items()},
    )


class _Kernels:
    """A density: t distributions of one shape about some centres."""

    def __init__(self, centres: Float[np.ndarray, "k d"], shape: Float[np.ndarray, "d d"]):
        self.centres, self.root = centres, _root(shape)
        self.size = len(shape)

    def draws(self, rng: np.random.Generator, n: int) -> Float[np.ndarray, "n d"]:
        normal = rng.standard_normal((n, self.size)) @ self.root.T
        heavy = np.sqrt(TAILS / rng.chisquare(TAILS, (n, 1)))
        return self.centres[rng.integers(len(self.centres), size=n)] + heavy * normal

    def log_density(self, points: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n"]:
        inverse = np.linalg.inv(self.root)
        apart = (points @ inverse.T)[:, None] - (self.centres @ inverse.T)[None]
        log_kernel = -0.5 * (TAILS + self.size) * np.log1p(np.sum(apart**2, axis=-1) / TAILS)
        constant = gammaln(0.5 * (TAILS + self.size)) - 0.5 * self.size * np.log(TAILS * np.pi)
        constant += -gammaln(0.5 * TAILS) - np.linalg.slogdet(self.root)[1]
        return constant + logsumexp(log_kernel, axis=1) - np.log(len(self.centres))


def _population(height: Density, shape: np.ndarray, prior: np.ndarray | None):
    """Points, and the logarithms of their weights."""
    rng = np.random.default_rng(0)
    proposals, counts = [_Kernels(np.zeros((1, len(shape))), shape)], [ROUND]
    if prior is not None:
        proposals.append(_about(prior, np.full(len(prior), 1.0 / len(prior)), rng))
        counts = [ROUND - len(prior), len(prior)]
    points = np.concatenate([p.draws(rng, n) for p, n in zip(proposals, counts, strict=True)])
    heights = height(points)
    while True:
        every = np.stack([p.log_density(points) for p in proposals], axis=1)
        log_weight = heights - logsumexp(every, axis=1, b=np.array(counts) / np.sum(counts))
        if _count(log_weight) >= ENOUGH or np.sum(counts) >= ROUND * ROUNDS:
            return points, log_weight
        proposals.append(_about(points, _flattened(log_weight), rng))
        counts.append(ROUND)
        new = proposals[-1].draws(rng, ROUND)
        points, heights = np.concatenate([points, new]), np.concatenate([heights, height(new)])


def _about(points: np.ndarray, share: np.ndarray, rng: np.random.Generator) -> _Kernels:
    """Kernels about some of the points, as wide as a normal density asks for (Silverman 1986)."""
    size = points.shape[1]
    spread = np.atleast_2d(np.cov(points.T, aweights=share, ddof=0))
    width = (4.0 / ((size + 2.0) * KERNELS)) ** (2.0 / (size + 4.0))
    return _Kernels(points[rng.choice(len(points), KERNELS, p=share)], width * spread)


def _flattened(log_weight: np.ndarray) -> np.ndarray:
    """Weights, to such a power that not too few of them count."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _count(middle * log_weight) >= FEWEST else (low, middle)
    return _shares(low * log_weight)


def _shares(log_weight: np.ndarray) -> np.ndarray:
    return np.exp(log_weight - logsumexp(log_weight))


def _count(log_weight: np.ndarray) -> float:
    """Of how many independent draws the weighed ones are worth (Kong 1992)."""
    return float(1.0 / np.sum(_shares(log_weight) ** 2))


def _root(shape: np.ndarray) -> np.ndarray:
    """Of a covariance, of which rounding may have made a little less than one."""
    variances, directions = np.linalg.eigh(shape)
    return directions * np.sqrt(np.maximum(variances, 1e-12 * variances.max()))


def _prior(problem: InverseProblem, names: tuple[str, ...]) -> np.ndarray | None:
    """Draws in unconstrained coordinates; None where a prior is improper."""
    unknowns, values = problem.unknowns(), {}
    for i, name in enumerate(names):
        drawn = prior_draws(unknowns[name], jax.random.key(i), (int(FROM_PRIOR * ROUND),))
        if drawn is None:
            return None
        values[name] = dist.biject_to(unknowns[name].support).inv(drawn)
    flat = [np.reshape(values[n], (int(FROM_PRIOR * ROUND), -1)) for n in names]
    return np.concatenate(flat, axis=1)


@eqx.filter_jit
def _rises(mean: Array, points: Array, problem: InverseProblem, names: tuple[str, ...], x, y):
    """Of minus the logarithm of the posterior, `[point, 2]`: as a density of unconstrained
    coordinates, and of values, which fits make least."""
    coordinates = Coordinates(problem, names)

    def heights(point):
        theta = coordinates.theta(point)
        return jnp.stack([potential(theta, problem, x, y), neg_log_joint(theta, problem, x, y)])

    return jax.lax.map(lambda point: heights(point) - heights(mean), points)
