"""What can be said of the fit of each pixel: values, errors, and a status."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, Int

from micjax.core.problem import Values
from micjax.core.tree import named_leaves
from micjax.inference.errors.laplace import PRIOR_RULES
from micjax.inference.maps.cholesky import factor_by_column, inverse, scaled, solved
from micjax.inference.maps.descent import EMPTY, Pace
from micjax.inference.maps.equations import NormalEquations, Pixel, equations, support_of
from micjax.inference.solvers.driver import CONVERGED, NON_FINITE
from micjax.inference.solvers.laws import LAWS, DataLaw

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
NOTHING = (dist.HalfNormal, dist.Exponential)  # priors of what may be nothing
FLAT = 1e4  # times that the variance grows by what else is unknown: single precision sees no more


class Told(NamedTuple):
    """Of b pixels: physical values and their standard deviations by name, `[..., b]`, the
    covariance of all of them in that order; which are at a bound or not identified; what is left
    of the data, see `left_of`."""

    values: Values
    sd: Values
    covariance: Float[Array, "k k b"]
    loss: Float[Array, " b"]
    chi_squared: Float[Array, " b"]
    points: Int[Array, " b"]
    status: Int[Array, " b"]
    bound: dict[str, Bool[Array, " b"]]
    identified: dict[str, Bool[Array, " b"]]
    correlated: Float[Array, " b"]
    excess: Float[Array, " b"]


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
    points = jnp.isfinite(y).sum(axis=0)
    noise = noise_scale(pixel, law)

    def looked(i, carried):
        """At the end of the descent, and again with the noise corrected."""
        flat, little, _ = carried
        here = equations(pixel, law, known, y, flat)
        matrix, scale = scaled(here.curvature, d)
        # where rounding kept the descent from its end there may be nothing left to gain
        low = factor_by_column(matrix, d)
        little = jnp.where(i == 0, 0.5 * solved(low, scale * here.slope)[1] < tolerance, little)
        if noise is not None:
            variances = jnp.einsum("iib->ib", inverse(low)) * scale**2
            more = _freedom(here, noise, variances, points)
            flat = flat.at[noise].add(jnp.where(i == 0, more, 0.0))
        return flat, little, here

    def nothing(shape):
        return jnp.zeros(shape.shape, shape.dtype)

    shapes = jax.eval_shape(lambda q: equations(pixel, law, known, y, q), pace.flat)
    begin = pace.flat, jnp.zeros(points.shape, bool), jax.tree.map(nothing, shapes)
    rounds = 1 if noise is None else 2
    flat, little, here = jax.lax.fori_loop(0, rounds, looked, begin)
    matrix, scale = scaled(here.curvature, d)
    low = factor_by_column(matrix, d)
    settled = (pace.ended == CONVERGED) | little
    spread = inverse(low)
    covariance = spread * scale[:, None] * scale
    variances = jnp.stack([covariance[i, i] for i in range(d)])
    growth = jnp.stack([spread[i, i] for i in range(d)])

    def of_one(known, flat, covariance):
        coordinates = pixel.coordinates(known)
        values = coordinates.values(flat)
        slopes = jax.jacfwd(coordinates.values)(flat)
        every = jnp.concatenate([slopes[n].reshape(-1, d) for n in coordinates.names])
        physical = every @ covariance @ every.T
        sd = jnp.sqrt(jnp.einsum("ii->i", physical))
        parts = jnp.split(sd, np.cumsum([values[n].size for n in coordinates.names])[:-1])
        named = zip(coordinates.names, parts, strict=True)
        sd = {n: part.reshape(values[n].shape) for n, part in named}
        return {n: values[n] for n in sd}, sd, physical

    values, sd, covariance = jax.vmap(of_one, in_axes=-1, out_axes=-1)(known, flat, covariance)
    coordinates, unknowns = pixel.coordinates({}), pixel.problem.unknowns()
    owner = coordinates.owner
    learnt = jnp.sqrt(variances) <= PRIOR_RULES * prior_sd[:, None]
    # of what may be nothing at all its logarithm is nobody's question
    for name, prior in unknowns.items():
        if isinstance(scalar := base_of(prior), NOTHING):
            there = sd[name].reshape(-1, sd[name].shape[-1])
            enough = there <= PRIOR_RULES * jnp.sqrt(jnp.ravel(scalar.variance)[0])
            learnt = learnt.at[np.flatnonzero(owner == name)].set(enough)
    clear = learnt & (growth < FLAT) & (scale > 0)
    bound = {n: at_bound(unknowns[n], values[n], sd[n]) for n in coordinates.names}
    identified = {n: clear[owner == n].all(axis=0) for n in coordinates.names}
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
    values, sd, covariance, (correlated, excess) = jax.tree.map(
        lambda a: jnp.where(lost, jnp.nan, a),
        (values, sd, covariance, left_of(pixel, law, known, y, flat)),
    )
    return Told(
        values,
        sd,
        covariance,
        here.loss,
        here.chi_squared,
        points,
        status,
        bound,
        identified,
        correlated,
        excess,
    )


def left_of(
    pixel: Pixel, law: DataLaw, known: Values, y: Float[Array, "n b"], flat: Float[Array, "d b"]
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """What the models leave of the data: the `likeness` of neighbours along the first axis of a
    datum, and the `excess` of chi^2."""

    def moments(known, q):
        of = pixel.law(known, q)
        return tuple(jnp.broadcast_to(m, of.batch_shape) for m in (of.mean, of.variance))

    mean, variance = jax.vmap(moments, -1, -1)(known, flat)
    residual = y.reshape(mean.shape) - mean
    return likeness(residual, variance), excess(residual, variance, law == LAWS[dist.Poisson])


def likeness(
    residual: Float[Array, "n *others b"], variance: Float[Array, "n *others b"]
) -> Float[Array, " b"]:
    """The correlation of neighbours in the residual, in the standard deviations which it has in
    independent noise: a model that describes the data leaves nothing that looks like a curve
    (Durbin & Watson 1950). What is NaN does not count."""
    seen, axes = jnp.isfinite(residual), tuple(range(residual.ndim - 1))
    unit = jnp.sqrt(jnp.where(seen, variance, 0.0).max(axis=axes))  # squares of small numbers are 0
    unit = jnp.where(unit > 0, unit, 1.0)
    z, sd = (jnp.where(seen, a / unit, 0.0) for a in (residual, jnp.sqrt(variance)))
    spread = ((sd[1:] * sd[:-1]) ** 2).sum(axis=axes)
    return (z[1:] * z[:-1]).sum(axis=axes) / jnp.sqrt(jnp.where(spread > 0, spread, 1.0))


def excess(
    residual: Float[Array, "n *others b"], variance: Float[Array, "n *others b"], counted: bool
) -> Float[Array, " b"]:
    """chi^2 above what it should be, in standard deviations: its variance is 2 for each datum, and
    1 / rate more for one that is `counted`."""
    seen, axes = jnp.isfinite(residual), tuple(range(residual.ndim - 1))
    variance = jnp.where(seen, variance, 1.0)
    terms = jnp.where(seen, residual / jnp.sqrt(variance), 1.0) ** 2 - 1.0
    spread = jnp.where(seen, 2.0 + (1.0 / variance if counted else 0.0), 0.0).sum(axis=axes)
    return terms.sum(axis=axes) / jnp.sqrt(jnp.maximum(spread, 1.0))


def base_of(prior: dist.Distribution) -> dist.Distribution:
    """What was expanded to the shape of an array."""
    while hasattr(prior, "base_dist"):
        prior = prior.base_dist
    return prior


def noise_scale(pixel: Pixel, law: DataLaw) -> int | None:
    """Which coordinate is the logarithm of the one number that all of a normal noise is
    proportional to: `noise.sigma`, where the noise has no other."""
    names = ["sigma"] == list(named_leaves(pixel.problem.noise)) and law == LAWS[dist.Normal]
    prior = pixel.problem.unknowns().get("noise.sigma") if names else None
    if prior is None or support_of(prior) is not dist.constraints.positive:
        return None
    return int(np.flatnonzero(pixel.coordinates({}).owner == "noise.sigma")[0])


def _freedom(here: NormalEquations, noise: int, variances, points) -> Float[Array, " b"]:
    """By how much the logarithm of the noise is too small where values were fitted to it: the
    residual has that many degrees of freedom less (Patterson & Thompson 1971). What a prior says
    takes none."""
    fitted = jnp.clip(1.0 - here.of_prior * variances, 0.0, 1.0).at[noise].set(0.0).sum(axis=0)
    left = jnp.maximum(points - fitted, 1.0)
    return 0.5 * jnp.log(jnp.maximum(points, 1.0) / left)


def at_bound(prior: dist.Distribution, value, sd) -> Bool[Array, " b"]:
    support = support_of(prior)
    low = getattr(support, "lower_bound", -jnp.inf)
    high = getattr(support, "upper_bound", jnp.inf)
    low, high = (jnp.asarray(e)[..., None] for e in (low, high))
    near = (value - low < sd) | (high - value < sd)
    return near.reshape(-1, near.shape[-1]).any(axis=0)
