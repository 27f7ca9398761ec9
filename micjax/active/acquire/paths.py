"""Functions drawn from the posterior: for Thompson sampling, batches, and draws of the maximum.

A path is an ordinary function of the points: it can be climbed by gradient, and evaluated wherever
and whenever it is needed, always as the same function.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from micjax.active.acquire.search import Box, maximise
from micjax.active.gp.algebra import jittered_cholesky
from micjax.active.gp.process import Observed, Process, State, double, joint

EXACT = 512  # up to so many points a Cholesky factor is cheap, and exact


class Paths(eqx.Module):
    """Draws of the function, `[m, d]` -> `[count, m]` in float64: made by `draw_paths`."""

    forward: Process
    observed: Observed
    weights: Float[Array, "count features"]  # of the prior
    update: Float[Array, "count capacity"]  # of the kernel functions at the data
    key: Array  # of the random features
    features: int = eqx.field(static=True)

    def __call__(self, points: Float[ArrayLike, "m d"]) -> Float[Array, "count m"]:
        with jax.enable_x64(True):
            return _evaluated(self, jnp.asarray(points, jnp.float64))


@eqx.filter_jit
def _evaluated(paths: Paths, points: Float[Array, "m d"]) -> Float[Array, "count m"]:
    prior = paths.weights @ _features(paths.forward, paths.key, paths.features, points).T
    covariance = paths.forward.covariance(paths.observed.points, points)
    return paths.forward.mean(points) + prior + paths.update @ covariance


@double
@eqx.filter_jit
def draw_paths(state: State, key: Array, count: int, features: int = 1024) -> Paths:
    """`count` functions from the posterior (without noise), in float64.

    f(x) = mean(x) + phi(x) . w + K(x, X) (K + noise)^-1 (y - mean(X) - phi(X) . w - e): a draw of
    the prior in random features phi, corrected at the data with the exact kernel (Matheron's rule;
    Wilson et al. 2020, Theorem 1 and Corollary 2).

    **Arguments:**

    - `features`: how many; they approximate the prior only, to about 1 / sqrt(features).

    **Raises:** `ValueError` for a kernel without random features: use `draw_values`.
    """
    spectrum, prior, noise = jax.random.split(key, 3)
    forward, observed = state.problem.forward, state.observed
    phi = _features(forward, spectrum, features, observed.points)
    weights = jax.random.normal(prior, (count, phi.shape[1]), phi.dtype)
    sd = jnp.sqrt(state.noise_and_jitter(observed))
    e = sd * jax.random.normal(noise, (count, len(sd)), phi.dtype)
    white = state.white - (observed.present * (weights @ phi.T + e)) @ state.root.T
    update = observed.present * (white @ state.root)
    return Paths(forward, observed, weights, update, spectrum, features)


def _features(forward: Process, key: Array, count: int, points: Array) -> Array:
    return forward.kernel.features(key, count)(forward.scaled(points))


@double
def draw_values(
    state: State, key: Array, count: int, points: Float[Array, "m d"]
) -> Float[np.ndarray, "count m"]:
    """`count` draws of the function at given points: exact joint samples, or, for many points and
    a kernel with random features, paths.

    **Raises:** `ValueError` when the posterior covariance of the points has no Cholesky factor.
    """
    points = jnp.asarray(points)
    if len(points) > EXACT:
        try:
            return np.asarray(draw_paths(state, key, count)(points))
        except ValueError:  # no random features: exact, if slower
            pass
    draws = np.asarray(_exact(state, key, count, points))
    if not np.isfinite(draws).all():
        raise ValueError(
            f"the posterior covariance of {len(points)} points has no Cholesky factor; "
            "are the hyper-parameters finite?"
        )
    return draws


@eqx.filter_jit
def _exact(state: State, key: Array, count: int, points: Array) -> Array:
    mean, covariance = joint(state, points)
    # at measured points hardly any variance is left, and rounding is a share of the prior's
    factor, _ = jittered_cholesky(covariance, state.problem.forward.variance(points))
    return mean + jax.random.normal(key, (count, len(mean))) @ factor.T


def peaks(
    paths: Paths, box: Box, key: Array, near: Float[Array, "k d"] | None = None
) -> tuple[Float[np.ndarray, "count d"], Float[np.ndarray, "count"]]:
    """Where each path is highest in a box, and how high: Thompson samples (Thompson 1933), and the
    draws of the maximum for `max_value_entropy`."""
    keys = jax.random.split(key, len(paths.weights))
    maxima = [maximise(_height, box, k, (paths, np.asarray(i)), near) for i, k in enumerate(keys)]
    points, heights = zip(*maxima, strict=True)
    return np.asarray(points), np.asarray(heights)


def _height(points: Array, paths: Paths, i: Array) -> Array:
    path = (paths.weights[i][None], paths.update[i][None])
    return eqx.tree_at(lambda p: (p.weights, p.update), paths, path)(points)[0]
