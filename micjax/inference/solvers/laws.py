"""What a datum says of the parameters of its law: misfit, slope, and Fisher information.

Least squares and Fisher scoring are one method then: with the information as weights, the slopes of
a model's predictions are all that is needed (McCullagh and Nelder 1989, sec. 2.5).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

Numbers = Float[Array, "..."]


class Score(NamedTuple):
    """Of one parameter of a law, datum by datum.

    - `root`: the square root of the information about it.
    - `residual`: d(misfit) / d(parameter) over `root`; of a normal law what is usually called so.
    """

    root: Numbers
    residual: Numbers


class DataLaw(NamedTuple):
    """**Arguments:**

    - `parameters`: their names in a distribution; the first is its location.
    - `misfit`: `misfit(y, *parameters)`: minus the log-likelihood, less that of the best location,
        so that single precision sees small differences.
    - `scores`: `scores(y, *parameters)`: a `Score` of each parameter.
    - `most`: `most(y, *parameters)`: the log-likelihood that the misfit was taken off from.
    """

    parameters: tuple[str, ...]
    misfit: Callable[..., Numbers]
    scores: Callable[..., tuple[Score, ...]]
    most: Callable[..., Numbers]


def law_of(distribution: dist.Distribution) -> DataLaw:
    """**Raises:** `ValueError` for a distribution that is none of `LAWS`."""
    law = LAWS.get(type(distribution))
    if law is None:
        raise ValueError(
            f"data of a {type(distribution).__name__}: Gauss-Newton knows "
            f"{', '.join(sorted(t.__name__ for t in LAWS))}"
        )
    return law


def depends(function: Callable[[Array], tuple[Array, ...]], at: Array) -> tuple[bool, ...]:
    """Which results of `function` may depend on its argument, from what it computes."""
    program = jax.make_jaxpr(function)(at).jaxpr
    touched = set(program.invars)
    for equation in program.eqns:
        if touched.intersection(v for v in equation.invars if not hasattr(v, "val")):
            touched.update(equation.outvars)
    return tuple(not hasattr(v, "val") and v in touched for v in program.outvars)


# --- normal ------------------------------------------------------------------------------------


def _normal_misfit(y, loc, scale):
    return 0.5 * ((loc - y) / scale) ** 2 + jnp.log(scale)


def _normal_scores(y, loc, scale):
    z = (loc - y) / scale
    return Score(1.0 / scale, z), Score(jnp.sqrt(2.0) / scale, (1.0 - z**2) / jnp.sqrt(2.0))


def _normal_most(y, loc, scale):
    return jnp.full_like(y, -0.5 * jnp.log(2.0 * jnp.pi))


# --- Poisson -----------------------------------------------------------------------------------


def _poisson_misfit(y, rate):
    """y log(y / rate) - (y - rate), in which the large parts of the two have cancelled already."""
    over = (y - rate) / rate
    return rate * (jax.scipy.special.xlog1py(1.0 + over, over) - over)


def _poisson_scores(y, rate):
    root = jax.lax.rsqrt(rate)
    return (Score(root, (rate - y) * root),)


def _poisson_most(y, rate):
    return jax.scipy.special.xlogy(y, y) - y - jax.scipy.special.gammaln(y + 1.0)


# --- Student's t, its degrees of freedom known --------------------------------------------------


def _student_misfit(y, loc, scale, df):
    return 0.5 * (df + 1.0) * jnp.log1p(((loc - y) / scale) ** 2 / df) + jnp.log(scale)


def _student_scores(y, loc, scale, df):
    """Lange, Little and Taylor (1989, J. Am. Stat. Assoc. 84, 881), appendix B."""
    z = (loc - y) / scale
    weight = (df + 1.0) / (df + z**2)
    of_loc = jnp.sqrt((df + 1.0) / (df + 3.0))
    of_scale = jnp.sqrt(2.0 * df / (df + 3.0))
    zero = jnp.zeros_like(z)
    return (
        Score(of_loc / scale, weight * z / of_loc),
        Score(of_scale / scale, (1.0 - weight * z**2) / of_scale),
        Score(zero, zero),
    )


def _student_most(y, loc, scale, df):
    gammaln = jax.scipy.special.gammaln
    most = gammaln(0.5 * (df + 1.0)) - gammaln(0.5 * df) - 0.5 * jnp.log(jnp.pi * df)
    return jnp.broadcast_to(most, y.shape)


LAWS: dict[type[dist.Distribution], DataLaw] = {
    dist.Normal: DataLaw(("loc", "scale"), _normal_misfit, _normal_scores, _normal_most),
    dist.Poisson: DataLaw(("rate",), _poisson_misfit, _poisson_scores, _poisson_most),
    dist.StudentT: DataLaw(("loc", "scale", "df"), _student_misfit, _student_scores, _student_most),
}
