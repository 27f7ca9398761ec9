"""What is left of the data: whether it is as large as the noise, and as white."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from micjax.core.joint import JointForward, JointLaw
from micjax.core.precision import in_float64
from micjax.core.problem import InverseProblem
from micjax.inference.maps.each import EachPixel

# chi^2 of a datum, and by how many standard deviations the data are less likely than draws of
# their own law: beyond both is a misfit
EXPLAINED, CERTAIN = 1.1, 5.0
DRAWS = 8
LEAST = 1e-9  # of the largest variance: below are no data, such as blind pixels
SHORTEST = 8  # axis along which neighbours are compared
ALIKE = 0.1  # correlation of neighbours, which changes errors by a tenth
UNEXPLAINED = (
    "The model does not explain the data (chi^2 per datum {:.3g}, {:.0f} standard deviations off): "
    "the errors are too small, and the values may be off by more. The residual shows where."
)
COLOURED = (
    "Neighbouring residuals are alike (a correlation of {:.2f}, {:.0f} standard deviations): the "
    "noise is correlated, or the model leaves something out. The errors count data as "
    "independent, and of what changes slowly they are too small by about {:.2g}."
)


def compared(problem: InverseProblem, x, y) -> tuple[dict[str, float], list[str]]:
    """The rms of the residual and chi^2 of a datum, where the law of the data has a mean and a
    variance; and a sentence if that is no chance."""
    try:
        mean, variance, largest = map(np.asarray, _moments(problem, x))
    except (AttributeError, NotImplementedError, TypeError):
        return {}, []
    there = ~np.isnan(y)  # of a law that leaves out what is not
    if mean.shape != np.shape(y) or not there.any():
        return {}, []
    residual = (np.asarray(y) - mean).astype(complex if np.iscomplexobj(mean) else float)
    squares = np.abs(residual[there]) ** 2
    variance = np.broadcast_to(variance, mean.shape)
    # the parts of a joint problem may have any units
    of_one = not isinstance(problem.forward, JointForward)
    measures = {"residual_rms": float(np.sqrt(np.mean(squares)))} if of_one else {}
    seen = there & np.isfinite(variance) & (variance > LEAST * largest)
    if not seen.any():
        return measures, []
    unit = np.where(seen, residual, 0.0) / np.sqrt(np.where(seen, variance, 1.0))
    measures["chi_squared_per_datum"] = chi2 = float(np.mean(np.abs(unit[seen]) ** 2))
    told = []
    if chi2 > EXPLAINED and (surprise := _surprise_or(np.inf, problem, x, y)) > CERTAIN:
        told.append(UNEXPLAINED.format(chi2, surprise))
    if not isinstance(problem.forward, EachPixel):  # each of whose pixels is judged by itself
        told += _coloured(unit, seen)
    return measures, told


def _coloured(unit: Float[np.ndarray, "..."], seen: np.ndarray) -> list[str]:
    """Of residuals in standard deviations: a sentence where neighbours along an axis are alike.

    A sum of n numbers with a correlation r of neighbours, as of an autoregression, has a variance
    of n (1 + r) / (1 - r) (Bartlett 1946, J. R. Stat. Soc. 8, 27)."""
    size, factor, most = float(np.mean(np.abs(unit[seen]) ** 2)), 1.0, (0.0, 0.0)
    for axis in range(unit.ndim):
        if unit.shape[axis] < SHORTEST or not size > 0:
            continue
        first, second = (np.moveaxis(unit, axis, 0)[s] for s in (slice(None, -1), slice(1, None)))
        both = np.moveaxis(seen, axis, 0)
        pairs = int(np.sum(both[:-1] & both[1:]))
        likeness = float(np.real(np.vdot(first, second))) / (max(pairs, 1) * size)
        if likeness > ALIKE and likeness * np.sqrt(pairs) > CERTAIN:
            factor *= np.sqrt((1.0 + likeness) / (1.0 - min(likeness, 0.99)))
            most = max(most, (likeness, likeness * np.sqrt(pairs)))
    return [COLOURED.format(*most, factor)] if factor > 1.0 else []


@eqx.filter_jit
def _moments(problem: InverseProblem, x) -> tuple[Array, Array, Array]:
    """Mean, variance, and the largest variance of the data of one kind."""
    law = problem.noise(problem.forward(x))
    joint = isinstance(law, JointLaw)
    return law.mean, law.variance, law.largest_variance if joint else jnp.max(law.variance)


def _surprise_or(unknown: float, problem: InverseProblem, x, y) -> float:
    try:
        with jax.enable_x64(True):  # large counts: the likelihood is a difference of large numbers
            return float(_surprise(*in_float64((problem, x, y))))
    except (AttributeError, NotImplementedError, TypeError):  # a law that gives no draws
        return unknown


@eqx.filter_jit
def _surprise(problem: InverseProblem, x, y) -> Array:
    """How much less likely the data are than draws of their law, in standard deviations of these.

    The likelihood has no heavy tails where chi^2 has, as that of rare counts and outliers has."""
    law = problem.noise(problem.forward(x))
    keys = jax.random.split(jax.random.key(0), DRAWS)

    def of_drawn(key):
        drawn = law.sample(key)
        if jnp.issubdtype(y.dtype, jnp.floating):  # and no labels
            drawn = jnp.where(jnp.isnan(y), jnp.nan, drawn)
        return jnp.sum(law.log_prob(drawn))

    drawn = jax.lax.map(of_drawn, keys)
    lost = jnp.mean(drawn) - jnp.sum(law.log_prob(y))
    return lost / jnp.maximum(jnp.std(drawn, ddof=1), 1.0)
