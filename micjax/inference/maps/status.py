"""What can be said of the fit of each pixel: values, errors, and a status."""

from typing import Any, NamedTuple

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
# standard deviations above it: below, noise makes a line somewhere along an axis, and what a part
# of a model that may be nothing has besides its size, its place and width, is that of noise
THERE = 4.0
QUICK = 7  # unknowns, with more of which the last look takes longer to compile than to make
WITHIN = 3  # looks from within a bound
FARTHEST = 1e6  # standard deviations at the bound, that the first of them may be away
FLAT = 1e4  # times that the variance grows by what else is unknown: single precision sees no more


class LastLook(NamedTuple):
    """How b pixels look: at the values `flat`, `scale` and `growth` as of the equations there, and
    errors from those made at the last `at`, which is where they are made next."""

    i: Int[Array, ""]
    flat: Float[Array, "d b"]
    at: Float[Array, "d b"]
    little: Bool[Array, " b"]
    loss: Float[Array, " b"]
    chi_squared: Float[Array, " b"]
    scale: Float[Array, "d b"]
    growth: Float[Array, "d b"]
    values: Any = None
    sd: Any = None
    covariance: Any = None
    near: Any = None


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
    deviation: the Gaussian would reach beyond. There the curvature is that from one standard
    deviation within the bound: of counts that lack it is infinite at the bound itself, and says
    nothing of how far the rate may be from it. An unknown is not identified when its standard
    deviation is above 0.9 of the prior's, or when others can make up for all of a change of it;
    nor are place and width of a part that is no larger than `THERE` of its standard deviations, nor
    its size where that cannot be nothing.
    """
    d = len(pace.flat)
    points = jnp.isfinite(y).sum(axis=0)
    noise = noise_scale(pixel, law)
    rounds = 1 if noise is None else 2
    coordinates, unknowns = pixel.coordinates({}), pixel.problem.unknowns()

    def looked(last: LastLook) -> LastLook:
        """At the end of the descent, again with the noise corrected, and where values are at a
        bound again from one standard deviation within it."""
        here = equations(pixel, law, known, y, last.at, stored=d > QUICK)
        matrix, scale = scaled(here.curvature, d)
        # where rounding kept the descent from its end there may be nothing left to gain
        low = factor_by_column(matrix, d)
        gain = 0.5 * solved(low, scale * here.slope)[1]
        little = jnp.where(last.i == 0, gain < tolerance, last.little)
        spread = inverse(low)
        flat, moves = last.flat, last.i >= rounds
        if noise is not None:
            variances = jnp.einsum("iib->ib", spread) * scale**2
            more = _freedom(here, noise, variances, points)
            flat = flat.at[noise].add(jnp.where(last.i == 0, more, 0.0))
        growth = jnp.einsum("iib->ib", spread)
        kept = jax.tree.map(
            lambda new, old: jnp.where(moves, old, new),
            (here.loss, here.chi_squared, scale, growth),
            (last.loss, last.chi_squared, last.scale, last.growth),
        )
        values, sd, covariance = _physical(
            pixel, known, flat, last.at, spread * scale[:, None] * scale
        )
        near, within = _within(pixel, known, flat, values, sd, last.i + 1 == rounds)
        at = jnp.where(last.i + 1 < rounds, flat, within)
        return LastLook(last.i + 1, flat, at, little, *kept, values, sd, covariance, near)

    def on(look: LastLook) -> Bool[Array, ""]:
        return (look.i < rounds) | ((look.i < rounds + WITHIN) & look.near)

    def nothing(shape):
        return jnp.zeros(shape.shape, shape.dtype)

    zero = jnp.zeros(points.shape, pace.flat.dtype)
    none = jnp.zeros(points.shape, bool)
    zeros = zero, zero, jnp.zeros_like(pace.flat), jnp.zeros_like(pace.flat)
    begin = LastLook(jnp.asarray(0), pace.flat, pace.flat, none, *zeros)
    shapes = jax.eval_shape(looked, begin)
    begin = LastLook(*begin[:8], *jax.tree.map(nothing, tuple(shapes)[8:]))
    look = jax.lax.while_loop(on, looked, begin)
    flat, scale, growth = look.flat, look.scale, look.growth
    values, sd, covariance = look.values, look.sd, look.covariance
    settled = (pace.ended == CONVERGED) | look.little
    variances = growth * scale**2
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
    for name in coordinates.names:
        if isinstance(base_of(unknowns[name]), NOTHING) or name in pixel.sizes:
            enough = (values[name] > THERE * sd[name]).reshape(-1, points.size).all(axis=0)
            for other in coordinates.names:
                own = other == name and name not in pixel.sizes
                if not own and other.rpartition(".")[0] == name.rpartition(".")[0]:
                    identified[other] &= enough
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
        look.loss,
        look.chi_squared,
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
    """chi^2 above what it should be, in standard deviations, each datum with the weight that its
    own term deserves: of variance 2, and of 1 / rate more where it is `counted`, so that channels
    with next to no counts hide nothing."""
    seen, axes = jnp.isfinite(residual), tuple(range(residual.ndim - 1))
    variance = jnp.where(seen, variance, 1.0)
    terms = jnp.where(seen, residual / jnp.sqrt(variance), 1.0) ** 2 - 1.0
    weights = jnp.where(seen, 1.0 / (2.0 + (1.0 / variance if counted else 0.0)), 0.0)
    return (weights * terms).sum(axis=axes) / jnp.sqrt(jnp.maximum(weights.sum(axis=axes), 1.0))


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


def _physical(pixel: Pixel, known: Values, flat, at, covariance) -> tuple[Values, Values, Array]:
    """Values at `flat`, their standard deviations, and the covariance of all of them, of a
    covariance of coordinates about `at`."""
    d = len(flat)

    def of_one(known, flat, at):
        coordinates = pixel.coordinates(known)
        values, slopes = coordinates.values(flat), jax.jacfwd(coordinates.values)(at)
        names = coordinates.names
        return {n: values[n] for n in names}, jnp.concatenate(
            [slopes[n].reshape(-1, d) for n in names]
        )

    values, slopes = jax.vmap(of_one, in_axes=-1, out_axes=-1)(known, flat, at)
    # sums of products: as products of matrices they would be made pixel by pixel
    half = (slopes[:, :, None] * covariance).sum(axis=1)
    physical = (half[:, None] * slopes).sum(axis=2)
    sd = jnp.sqrt(jnp.einsum("iib->ib", physical))
    parts = jnp.split(sd, np.cumsum([v[..., 0].size for v in values.values()])[:-1])
    sd = {n: part.reshape(values[n].shape) for n, part in zip(values, parts, strict=True)}
    return values, sd, physical


def _within(pixel: Pixel, known: Values, flat, values: Values, sd: Values, first):
    """Whether a value is at a bound, and `flat` with those that are moved from it by a standard
    deviation, halfway to the other end at most. The `first` time by that which counts would have,
    whose curvature goes as one over the distance from the bound."""
    unknowns = pixel.problem.unknowns()

    def of_one(known, flat, values, sd):
        coordinates = pixel.coordinates(known)
        theta, near = coordinates.theta(flat), jnp.asarray(False)
        for name in coordinates.names:
            if support_of(unknowns[name]) is dist.constraints.real:
                continue
            low, high = ends_of(unknowns[name])
            value, step = values[name], sd[name]
            at_low, at_high = value - low < step, high - value < step
            gap = jnp.where(at_low, value - low, high - value)
            ratio = jnp.minimum(step / jnp.maximum(gap, step / FARTHEST), FARTHEST)
            step = jnp.where(first, jnp.sqrt(1.0 + ratio**2), 1.0) * step
            away = jnp.where(at_low, jnp.minimum(step, (high - value) / 2.0), 0.0)
            away = jnp.where(at_high & ~at_low, -jnp.minimum(step, (value - low) / 2.0), away)
            inverse = dist.biject_to(unknowns[name].support).inv
            theta[name] = jnp.where(at_low | at_high, inverse(value + away), theta[name])
            near |= (at_low | at_high).any()
        return near, coordinates.vector(theta)

    near, within = jax.vmap(of_one, -1, -1)(known, flat, values, sd)
    return near.any(), within


def ends_of(prior: dist.Distribution) -> tuple[Array, Array]:
    """Of what each element may be."""
    support = support_of(prior)
    low = getattr(support, "lower_bound", -jnp.inf)
    return jnp.asarray(low, float), jnp.asarray(getattr(support, "upper_bound", jnp.inf), float)


def at_bound(prior: dist.Distribution, value, sd) -> Bool[Array, " b"]:
    low, high = (e[..., None] for e in ends_of(prior))
    near = (value - low < sd) | (high - value < sd)
    return near.reshape(-1, near.shape[-1]).any(axis=0)
