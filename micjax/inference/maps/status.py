"""What can be said of the fit of each pixel: values, errors, and a status."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, Int

from micjax.core.problem import Values
from micjax.inference.errors.laplace import PRIOR_RULES
from micjax.inference.maps.cholesky import factor, inverse, scaled, solved
from micjax.inference.maps.descent import EMPTY, Pace
from micjax.inference.maps.equations import Pixel, equations
from micjax.inference.solvers.driver import CONVERGED, NON_FINITE
from micjax.inference.solvers.laws import DataLaw

STATUS = (
    "converged",
    "at a bound",
    "not identified",
    "not converged",
    "not finite",
    "too few data",
    "no data",
    "not fitted",
)
UNUSABLE = ("no data", "not finite", "not fitted")  # there are no values
FLAT = 1e4  # times that the variance grows by what else is unknown: single precision sees no more


class Told(NamedTuple):
    """Of b pixels: physical values and their standard deviations by name, `[..., b]`; which are at
    a bound or not identified."""

    values: Values
    sd: Values
    covariance: Float[Array, "d d b"]
    loss: Float[Array, " b"]
    chi_squared: Float[Array, " b"]
    points: Int[Array, " b"]
    status: Int[Array, " b"]
    bound: dict[str, Bool[Array, " b"]]
    identified: dict[str, Bool[Array, " b"]]


def told(
    pixel: Pixel,
    law: DataLaw,
    known: Values,
    y: Float[Array, "n b"],
    pace: Pace,
    prior_sd: Float[Array, " d"],
    tolerance: Float[Array, ""],
) -> Told:
    """The Gaussian with the expected curvature of the posterior (Laplace), pixel by pixel.

    An unknown is at a bound when it is closer to an end of what its prior allows than its standard
    deviation: the Gaussian would reach beyond. It is not identified when its standard deviation is
    above 0.9 of the prior's, or when others can make up for all of a change of it.
    """
    d = len(pace.flat)
    here = equations(pixel, law, known, y, pace.flat)
    matrix, scale = scaled(here.curvature, d)
    low = factor(matrix, d)
    # where rounding kept the descent from its end there may be nothing left to gain
    little = 0.5 * solved(low, scale * here.slope)[1] < tolerance
    settled = (pace.ended == CONVERGED) | little
    spread = inverse(low)
    covariance = spread * scale[:, None] * scale
    variances = jnp.stack([covariance[i, i] for i in range(d)])
    growth = jnp.stack([spread[i, i] for i in range(d)])
    learnt = jnp.sqrt(variances) <= PRIOR_RULES * prior_sd[:, None]
    clear = learnt & (growth < FLAT) & (scale > 0)

    def of_one(known, flat, covariance):
        coordinates = pixel.coordinates(known)
        values = coordinates.values(flat)
        slopes = jax.jacfwd(coordinates.values)(flat)
        sd = {
            n: jnp.sqrt(jnp.einsum("...i,ik,...k->...", s, covariance, s))
            for n, s in slopes.items()
        }
        return {n: values[n] for n in sd}, sd

    values, sd = jax.vmap(of_one, in_axes=-1, out_axes=-1)(known, pace.flat, covariance)
    coordinates, unknowns = pixel.coordinates({}), pixel.problem.unknowns()
    owner = coordinates.owner
    bound = {n: _at_bound(unknowns[n], values[n], sd[n]) for n in coordinates.names}
    identified = {n: clear[owner == n].all(axis=0) for n in coordinates.names}
    points = jnp.isfinite(y).sum(axis=0)
    status = jnp.select(
        [
            pace.ended == EMPTY,
            points < d,
            pace.ended == NON_FINITE,
            ~settled,
            ~jnp.stack(list(identified.values())).all(axis=0),
            jnp.stack(list(bound.values())).any(axis=0),
        ],
        [STATUS.index(s) for s in ("no data", "too few data", "not finite")]
        + [STATUS.index(s) for s in ("not converged", "not identified", "at a bound")],
        STATUS.index("converged"),
    )
    lost = jnp.isin(status, jnp.array([STATUS.index(s) for s in UNUSABLE]))
    values, sd = jax.tree.map(lambda a: jnp.where(lost, jnp.nan, a), (values, sd))
    return Told(
        values, sd, covariance, here.loss, here.chi_squared, points, status, bound, identified
    )


def _at_bound(prior: dist.Distribution, value, sd) -> Bool[Array, " b"]:
    support = prior.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    low = getattr(support, "lower_bound", -jnp.inf)
    high = getattr(support, "upper_bound", jnp.inf)
    low, high = (jnp.asarray(e)[..., None] for e in (low, high))
    near = (value - low < sd) | (high - value < sd)
    return near.reshape(-1, near.shape[-1]).any(axis=0)
