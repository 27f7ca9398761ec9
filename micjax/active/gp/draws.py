"""The hyper-parameters that data leave open: draws by importance about the most probable ones.

Quicker than particles from the prior (`micjax.active.streaming`), for what is asked after every
datum; with a handful of hyper-parameters the curvature at their best values is a good proposal.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import logsumexp
from scipy.stats import multivariate_t

from micjax.active.gp.evidence import Evidence, loss_and_gradient
from micjax.active.gp.observed import Observed
from micjax.core.coordinates import Coordinates
from micjax.core.precision import double
from micjax.core.problem import InverseProblem, Values

TRIED = 64  # draws of the proposal for each time
TAILS = 5  # its degrees of freedom
STEP = 1e-3  # of a difference, in widths of the priors
FLATTEST = 0.1  # curvature: no wider than some three widths of the priors


class Draws(NamedTuple):
    """Equally likely hyper-parameters, and how likely the data are over all of them."""

    values: Values  # `[count, ...]`, physical
    log_evidence: float  # log p(y), nats


@double
def plausible(
    evidence: Evidence, observed: Observed, y: Float[Array, "capacity"], count: int
) -> Draws:
    """`count` draws from the posterior of the hyper-parameters of a process.

    Draws of a t distribution with the curvature at the most probable values are weighed by
    posterior / proposal (importance sampling), and `count` of them are taken by their weights
    (systematic resampling). The random numbers are the same ones at every call, so that one more
    datum changes little.

    **Arguments:**

    - `evidence`: the fit to these data.
    - `observed`, `y`: as `gp.buffered` makes them.
    """
    width, problem = evidence.width, evidence.problem

    def loss(z: np.ndarray) -> tuple[float, np.ndarray]:
        return loss_and_gradient(evidence, z, observed, y)

    best = evidence.flat / width
    _, volume_slope = _log_volume(evidence.flat[None], problem)
    shape = _inverse(_hessian(loss, best))
    # the best physical values are not those of the unconstrained density
    centre = best + shape @ (width * np.asarray(volume_slope)[0])
    proposal = multivariate_t(centre, shape, df=TAILS, seed=0)
    tried = proposal.rvs(TRIED).reshape(TRIED, best.size)
    volume, _ = _log_volume(width * tried, problem)
    log_weight = np.array([-loss(z)[0] for z in tried]) + np.asarray(volume)
    log_weight = log_weight - proposal.logpdf(tried) + np.sum(np.log(width))
    total = logsumexp(log_weight)
    shares = np.cumsum(np.exp(log_weight - total))
    rows = np.searchsorted(shares, (np.arange(count) + 0.5) / count * shares[-1])
    values = _physical(width * tried[rows], problem)
    return Draws(jax.device_get(values), float(total - np.log(TRIED)))


def _hessian(loss, at: np.ndarray) -> np.ndarray:
    steps = STEP * np.eye(at.size)
    rows = [(loss(at + step)[1] - loss(at - step)[1]) / (2.0 * STEP) for step in steps]
    return 0.5 * (np.array(rows) + np.array(rows).T)


def _inverse(hessian: np.ndarray) -> np.ndarray:
    curvature, directions = np.linalg.eigh(hessian)
    return directions / np.maximum(curvature, FLATTEST) @ directions.T


@eqx.filter_jit
def _log_volume(flats: Float[Array, "n p"], problem: InverseProblem):
    return jax.vmap(jax.value_and_grad(Coordinates(problem).log_volume))(jnp.asarray(flats))


@eqx.filter_jit
def _physical(flats: Float[Array, "n p"], problem: InverseProblem) -> Values:
    return jax.vmap(Coordinates(problem).values)(jnp.asarray(flats))
