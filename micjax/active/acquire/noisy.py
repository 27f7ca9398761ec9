"""What a measurement is worth where all measurements are noisy: nobody knows the best value so far.

Noisy expected improvement averages over what the function may be where it was measured; the
knowledge gradient asks how much higher the highest mean will be. Pure functions of a state, the
parts for inside jit.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp
from jaxtyping import Array, Float
from scipy.stats import norm, qmc

from micjax.active.acquire.values import knowledge_gradient, log_expected_improvement
from micjax.active.gp.algebra import inverse_lower, jittered_cholesky, masked
from micjax.active.gp.process import ROUNDED, Observed, State, joint, posterior


class Truths(NamedTuple):
    """What a function may be where it was measured, and the processes through these values."""

    root: Float[Array, "capacity capacity"]  # root^T root is the inverse of the kernel matrix
    white: Float[Array, "draws capacity"]
    best: Float[Array, "draws"]  # the highest of each draw


def normals(draws: int, capacity: int) -> Float[np.ndarray, "draws capacity"]:
    """Standard normal numbers spread evenly (a scrambled Sobol sequence), the same ones always."""
    return norm.ppf(qmc.Sobol(capacity, rng=0).random(draws))


def truths(state: State, z: Float[Array, "draws capacity"], sign: Float[Array, ""]) -> Truths:
    """Draws of the function at the data from its posterior, by the normal numbers `z`."""
    forward, points, present = state.problem.forward, state.observed.points, state.observed.present
    variance, none = forward.variance(points), jnp.zeros(len(present))
    mean, covariance = joint(state, points)
    factor, _ = jittered_cholesky(masked(forward.covariance(points, points), none, present))
    root = inverse_lower(factor)
    # a zero, for which the second loop of factorisations has to wait: two at once can block each
    # other on a CPU
    covariance = covariance + 0.0 * root[0, 0]
    spread, _ = jittered_cholesky(masked(covariance, none, present), variance)
    values = mean + present * (z @ spread.T)
    white = (present * (values - forward.mean(points))) @ root.T
    best = jnp.max(jnp.where(present > 0.0, sign * values, -jnp.inf), axis=1)
    return Truths(root, white, best)


def log_noisy_improvement(
    points: Float[Array, "m d"], state: State, drawn: Truths, sign: Float[Array, ""]
) -> Float[Array, "m"]:
    """log E[max(f(x) - max f(X), 0)] over what f is at the data X (Letham et al. 2019, eq. 5): for
    each draw of f(X) the expected improvement is exact."""
    forward = state.problem.forward
    covariance = forward.covariance(state.observed.points, points)
    known = drawn.root @ (state.observed.present[:, None] * covariance)
    prior = forward.variance(points)
    sd = jnp.sqrt(jnp.maximum(prior - jnp.sum(known**2, axis=0), ROUNDED * prior))
    means = sign * (forward.mean(points) + drawn.white @ known)
    each = log_expected_improvement(means, sd, drawn.best[:, None])
    return logsumexp(each, axis=0) - jnp.log(len(each))


def log_knowledge(
    points: Float[Array, "m d"], state: State, among: Float[Array, "k d"], sign: Float[Array, ""]
) -> Float[Array, "m"]:
    """log(E[max mean after a datum at x] - max mean now), over x and the points `among` which the
    best is chosen in the end (the knowledge gradient for continuous parameters; Scott, Frazier &
    Powell 2011, eq. 4.11)."""
    forward, known = state.problem.forward, state.against(points)
    mean, variance = posterior(state, points)
    noisy_sd = jnp.sqrt(variance + state.noise_and_jitter(Observed.at(points)))
    covariance = forward.covariance(among, points) - state.against(among).T @ known
    final, _ = posterior(state, among)

    def gain(mean, variance, covariance, noisy_sd):
        means = jnp.append(sign * final, sign * mean)
        with_all = jnp.append(covariance, variance)
        return knowledge_gradient(means, with_all[:, None], noisy_sd[None])[0]

    gains = jax.vmap(gain)(mean, variance, covariance.T, noisy_sd)
    return jnp.log(jnp.maximum(gains, jnp.finfo(gains.dtype).tiny))
