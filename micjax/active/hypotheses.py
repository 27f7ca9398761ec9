"""Which law is it? Several physical means compared by evidence as the data come in.

Every hypothesis is a process of its own (a law as mean, a kernel for what it leaves over, noise),
followed by particles (`micjax.active.streaming`), whose normalising constant is its evidence
p(y | hypothesis). The next point is where the outcome tells most of which hypothesis holds.
"""

from collections.abc import Mapping
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp
from jax.scipy.stats import norm
from jaxtyping import Array, ArrayLike, Float

from micjax.active import streaming
from micjax.active.gp.process import Observed, Point, double
from micjax.core.problem import InverseProblem

# of the outcomes: panels between these distances from each mean, in standard deviations, and a
# Gauss-Legendre rule on each
ENDS = np.linspace(-9.0, 9.0, 13)
NODES, WEIGHTS = np.polynomial.legendre.leggauss(6)


class Hypotheses(NamedTuple):
    """The particles of each hypothesis by its name, all at the same points."""

    clouds: dict[str, streaming.Cloud]
    prior: dict[str, float]  # adds up to 1


@double
def begin(
    problems: Mapping[str, InverseProblem],
    observed: Observed,
    y: Float[Array, "capacity"],
    points: Float[ArrayLike, "m d"],
    key: Array,
    *,
    prior: Mapping[str, float] | None = None,
    particles: int = 128,
) -> Hypotheses:
    """Hypotheses `{name: process}` after the first data.

    **Arguments:**

    - `points`: where predictions are wanted, such as all candidates for the next measurement.
    - `prior`: probabilities of the hypotheses; equal ones by default. They are normalised.

    **Raises:** `ValueError` for fewer than two hypotheses, or a prior with other names.
    """
    if len(problems) < 2:
        raise ValueError(f"there is nothing to compare among {sorted(problems)}")
    prior = dict.fromkeys(problems, 1.0) if prior is None else dict(prior)
    if set(prior) != set(problems) or not all(p > 0 for p in prior.values()):
        raise ValueError(f"the prior {prior} needs a positive number for each of {list(problems)}")
    keys = jax.random.split(key, len(problems))
    clouds = {
        name: streaming.begin(problem, observed, y, points, k, particles=particles)
        for k, (name, problem) in zip(keys, problems.items(), strict=True)
    }
    total = sum(prior.values())
    return Hypotheses(clouds, {name: prior[name] / total for name in clouds})


def tell(
    hypotheses: Hypotheses,
    point: Point,
    y: ArrayLike,
    key: Array,
    noise_ratio: ArrayLike = 1.0,
) -> Hypotheses:
    """The hypotheses with one more datum."""
    keys = jax.random.split(key, len(hypotheses.clouds))
    clouds = {
        name: streaming.tell(cloud, point, y, k, noise_ratio)
        for k, (name, cloud) in zip(keys, hypotheses.clouds.items(), strict=True)
    }
    return hypotheses._replace(clouds=clouds)


def log_evidence(hypotheses: Hypotheses) -> dict[str, float]:
    """log p(y | hypothesis), nats."""
    return {name: float(cloud.log_evidence) for name, cloud in hypotheses.clouds.items()}


def probabilities(hypotheses: Hypotheses) -> dict[str, float]:
    """The posterior probability of each hypothesis."""
    logs = np.array([float(c.log_evidence) for c in hypotheses.clouds.values()])
    logs += np.log(list(hypotheses.prior.values()))
    chances = np.exp(logs - logs.max())
    return dict(zip(hypotheses.clouds, (chances / chances.sum()).tolist(), strict=True))


def predict(hypotheses: Hypotheses) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """Mean and variance of the function (without noise), averaged over the hypotheses."""
    chances = np.array(list(probabilities(hypotheses).values()))
    means, variances = np.stack([streaming.predict(c) for c in hypotheses.clouds.values()], axis=1)
    mean = chances @ means
    return mean, chances @ (variances + (means - mean) ** 2)


@double
def information(hypotheses: Hypotheses) -> Float[np.ndarray, "m"]:
    """What the outcome at each point is expected to tell of which hypothesis holds, in nats.

        I = sum_k p_k KL(p(y | k) || sum_j p_j p(y | j))

    (Box & Hill 1967, with the mixture in the place of their bound), the outcomes of a hypothesis
    taken as Gaussian with their mean and variance. It is high where hypotheses disagree by more
    than noise and their own ignorance, and never above log of their number.
    """
    chances = jnp.asarray(list(probabilities(hypotheses).values()))
    outcomes = [streaming.predict_measured(cloud) for cloud in hypotheses.clouds.values()]
    means, variances = np.stack(outcomes, axis=1)
    return np.asarray(_information(chances, jnp.asarray(means), jnp.sqrt(jnp.asarray(variances))))


@eqx.filter_jit
def _information(
    chances: Float[Array, "k"], mean: Float[Array, "k m"], sd: Float[Array, "k m"]
) -> Float[Array, "m"]:
    # panels as narrow as the narrowest hypothesis where that one is: nodes of a broad one alone
    # would step over it
    ends = jnp.sort((mean + sd * jnp.asarray(ENDS)[:, None, None]).reshape(-1, mean.shape[1]), 0)
    half = 0.5 * jnp.diff(ends, axis=0)

    def of_rule(total, rule):
        node, weight = rule
        outcome = 0.5 * (ends[1:] + ends[:-1]) + node * half  # [panels, m]
        log_each = norm.logpdf(outcome[:, None], mean, sd)  # [panels, k, m]
        log_mixture = logsumexp(log_each + jnp.log(chances)[:, None], axis=1)
        gain = jnp.exp(log_each) * (log_each - log_mixture[:, None])
        return total + weight * jnp.einsum("k,pkm,pm->m", chances, gain, half), None

    rules = jnp.asarray(NODES), jnp.asarray(WEIGHTS)
    total, _ = jax.lax.scan(of_rule, jnp.zeros(mean.shape[1]), rules)
    return jnp.maximum(total, 0.0)
