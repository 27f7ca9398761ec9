"""What is left of the data: whether it is as large as the noise, and as white."""

from collections.abc import Mapping
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from micjax.core.joint import JointForward, JointLaw
from micjax.core.precision import in_float64
from micjax.core.problem import InverseProblem
from micjax.inference.maps.each import EachPixel
from micjax.inference.verdicts.correlation import Correlations, correlations

# chi^2 of a datum, and by how many standard deviations the data are less likely than draws of
# their own law: beyond both is a misfit
EXPLAINED, CERTAIN = 1.1, 5.0
DRAWS = 8
LEAST = 1e-9  # of the largest variance: below are no data, such as blind pixels
NOTICED = 1.05  # times an error, of less of which nothing is told
UNEXPLAINED = (
    "The model does not explain the data (chi^2 per datum {:.3g}, {:.0f} standard deviations off): "
    "{}, and the values may be off by more. The residual shows where."
)
COLOURED = (
    "Neighbouring residuals are alike (a correlation of {:.2f} up to {} apart, {:.0f} standard "
    "deviations): the noise is correlated, or the model leaves something out. {}."
)
INDEPENDENT = (
    "The errors count data as independent, and of what changes slowly they are too small by about "
    "{:.2g}"
)


class Residual(NamedTuple):
    """What is left of the data.

    - `measures`: its rms, and chi^2 of a datum.
    - `surprise`: by how many standard deviations it is no draw of its law, 0 where it may be.
    - `correlations`: of what there is, in standard deviations of the noise; `seen` where there are
        data. None of a map, each of whose pixels is judged by itself.
    """

    measures: dict[str, float] = {}
    surprise: float = 0.0
    correlations: Correlations | None = None
    seen: np.ndarray | None = None

    def is_noise(self) -> bool:
        """As the model says."""
        return not self.surprise and (self.correlations is None or not self.correlations.reach)

    def sentences(self, grown: Mapping[str, float] | None = None) -> list[str]:
        """What of it is no chance.

        **Arguments:**

        - `grown`: by what errors have been made larger for it.
        """
        most, out = max((grown or {}).values(), default=1.0), []
        none = bool(grown) and most < NOTICED  # of the errors depends on it
        larger = f"errors have been made up to {most:.2g} times as large for it"
        if self.surprise:
            chi2 = self.measures["chi_squared_per_datum"]
            does = larger if grown and not none else "the errors are too small"
            out.append(UNEXPLAINED.format(chi2, self.surprise, does))
        if (of := self.correlations) is not None and of.reach and not none:
            does = f"The {larger}" if grown else INDEPENDENT.format(of.factor())
            out.append(COLOURED.format(of.likeness, of.reach, of.surprise, does))
        return out


def compared(problem: InverseProblem, x, y) -> Residual:
    """The data with what the problem makes of them, where their law has a mean and a variance."""
    try:
        mean, variance, largest = map(np.asarray, _moments(problem, x))
    except (AttributeError, NotImplementedError, TypeError):
        return Residual()
    there = ~np.isnan(y)  # of a law that leaves out what is not
    if mean.shape != np.shape(y) or not there.any():
        return Residual()
    residual = (np.asarray(y) - mean).astype(complex if np.iscomplexobj(mean) else float)
    squares = np.abs(residual[there]) ** 2
    variance = np.broadcast_to(variance, mean.shape)
    # the parts of a joint problem may have any units
    of_one = not isinstance(problem.forward, JointForward)
    measures = {"residual_rms": float(np.sqrt(np.mean(squares)))} if of_one else {}
    seen = there & np.isfinite(variance) & (variance > LEAST * largest)
    if not seen.any():
        return Residual(measures)
    unit = np.where(seen, residual, 0.0) / np.sqrt(np.where(seen, variance, 1.0))
    measures["chi_squared_per_datum"] = chi2 = float(np.mean(np.abs(unit[seen]) ** 2))
    surprise = _surprise_or(np.inf, problem, x, y) if chi2 > EXPLAINED else 0.0
    surprise = surprise if surprise > CERTAIN else 0.0
    if isinstance(problem.forward, EachPixel) or np.iscomplexobj(unit):
        return Residual(measures, surprise)
    return Residual(measures, surprise, correlations(unit[None], seen[None]), seen)


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
