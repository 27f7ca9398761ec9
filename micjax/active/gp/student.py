"""Student-t noise: data that lie far off count less, and every fast path stays Gaussian.

y = f(x) + s t_nu is Gaussian noise of variance s^2 / w with a weight w ~ Gamma(nu / 2, nu / 2) for
each datum. With f and the weights taken as independent (variational Bayes; Tipping & Lawrence
2005), f is a Gaussian process whose noise ratios carry the expected weights, and

    w = (nu + 1) / (nu + E[(y - f)^2] / s^2)

Hyper-parameters are fitted with the weights held, which maximises the same bound (EM).
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaln
from jaxtyping import Array, Float

from micjax.active.gp import process as gp
from micjax.active.gp.evidence import Evidence, fit_evidence
from micjax.active.gp.process import Observed, double
from micjax.core.problem import InverseProblem, log_likelihood

SWEEPS = 30  # of weights and posterior in turn, at given hyper-parameters
SETTLED = 1e-2  # a fit ends when no weight changes by more


class Weighed(NamedTuple):
    """Data whose noise ratios carry the expected weights: the x of a process from here on."""

    observed: Observed
    weights: Float[Array, "capacity"]  # about 1; an outlier's is small
    bound: Float[Array, ""]  # not above log p(y), nats


@double
def weigh(
    problem: InverseProblem,
    observed: Observed,
    y: Float[Array, "capacity"],
    degrees_of_freedom: float | Float[Array, ""] = 4.0,
) -> Weighed:
    """The expected weights of the data, at the hyper-parameters of `problem`.

    **Arguments:**

    - `observed`: with the noise ratios as they are without outliers.
    """
    return _weigh(problem, observed, y, jnp.asarray(degrees_of_freedom, float))


@eqx.filter_jit
def _weigh(problem: InverseProblem, observed: Observed, y, nu: Float[Array, ""]) -> Weighed:
    scale = problem.noise.variances(observed)

    def weighed(weights) -> Observed:
        return observed._replace(noise_ratio=observed.noise_ratio / jnp.sqrt(weights))

    def misfit(weights) -> Float[Array, "capacity"]:
        """E[(y - f)^2] / s^2."""
        state = gp.conditioned(problem, weighed(weights), y)
        mean, variance = gp.posterior(state, observed.points)
        return ((y - mean) ** 2 + variance) / scale

    def sweep(_, weights):
        return jnp.where(observed.present > 0, (nu + 1.0) / (nu + misfit(weights)), 1.0)

    weights = jax.lax.fori_loop(0, SWEEPS, sweep, jnp.ones_like(y))
    gaussian = log_likelihood(problem, weighed(weights), y)
    return Weighed(weighed(weights), weights, gaussian - _paid(weights, nu, observed.present))


def _paid(weights, nu, present) -> Float[Array, ""]:
    """What the weights cost: KL(q | prior) - E[log w - log E w] / 2, q = Gamma((nu + 1) / 2, b)."""
    a, a0 = 0.5 * (nu + 1.0), 0.5 * nu
    b, b0 = a / weights, 0.5 * nu
    log_w = digamma(a) - jnp.log(b)
    divergence = (
        (a - a0) * digamma(a) - gammaln(a) + gammaln(a0) + a0 * jnp.log(b / b0) + a * (b0 - b) / b
    )
    return jnp.sum(present * (divergence - 0.5 * (log_w - jnp.log(weights))))


class Student(NamedTuple):
    """The best hyper-parameters under Student-t noise, and the data with their weights."""

    evidence: Evidence
    weighed: Weighed


@double
def fit_student(
    problem: InverseProblem,
    observed: Observed,
    y: Float[Array, "capacity"],
    *,
    degrees_of_freedom: float = 4.0,
    last: Student | None = None,
    rounds: int = 20,
) -> Student:
    """Hyper-parameters and weights in turn; `noise.sigma` becomes the s of the t distribution.

    Condition on the result with `gp.condition(s.evidence.problem, s.weighed.observed, y)`.

    **Arguments:**

    - `observed`: with the noise ratios as they are without outliers.
    - `degrees_of_freedom`: 4 expects an outlier beyond 4 s in every 60 data; 1 is Cauchy noise.
    - `last`: the fit before the last data came; starts there.

    **Raises:** `ValueError` for degrees of freedom that are not positive.
    """
    if not degrees_of_freedom > 0:
        raise ValueError(f"degrees_of_freedom is {degrees_of_freedom}; it has to be positive")
    nu = jnp.asarray(degrees_of_freedom)
    at = problem if last is None else last.evidence.problem
    evidence = None if last is None else last.evidence
    weighed, before = weigh(at, observed, y, nu), None
    for _ in range(rounds):
        evidence = fit_evidence(problem, weighed.observed, y, last=evidence)
        before, weighed = weighed.weights, weigh(evidence.problem, observed, y, nu)
        if np.max(np.abs(weighed.weights - before)) < SETTLED:
            break
    return Student(evidence, weighed)


def weight_of(
    y: float | Array,
    mean: float | Array,
    variance: float | Array,
    noise_variance: float | Array,
    degrees_of_freedom: float = 4.0,
) -> Float[Array, "..."] | Float[np.ndarray, "..."] | float:
    """The weight of one new datum, from what was predicted for it.

    Append it with a noise ratio 1 / sqrt(weight). The other data keep theirs until the next fit.

    **Arguments:**

    - `mean`, `variance`: of the function there, by the data before.
    - `noise_variance`: s^2.
    """
    nu, weight = degrees_of_freedom, 1.0
    for _ in range(SWEEPS):
        gain = variance / (variance + noise_variance / weight)
        left = (1.0 - gain) * (y - mean)
        weight = (nu + 1.0) / (nu + (left**2 + (1.0 - gain) * variance) / noise_variance)
    return weight
