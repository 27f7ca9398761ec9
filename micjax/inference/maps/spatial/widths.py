"""How alike neighbours are: the width of their differences with which a map has the least error.

Of a map of estimates with known variances the error of every smoothing of it can be estimated
without the truth (Stein 1981; its degrees of freedom from a random probe, Ramani et al. 2008). The
likelihood of the widths would be another way; it takes a slope, whose differences are all alike,
for independent ones, and smoothes too much.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from micjax.inference.maps.spatial.links import Links, differences, strength, tied

EDGES, SHARES = 0.05, (1e-3, 0.2)  # of all pairs: to begin with, and what is allowed
TRIED = np.geomspace(0.02, 40.0, 15)  # widths over the standard deviation of a pixel
ROUNDS = 4
NUDGE = 0.3  # standard deviations, by which a map is shaken to see what follows
FAR = 3.0  # times as wide as the differences of what is alike, edges are at least
OUTLYING = 16.0  # squared standard deviations, beyond which a pixel tells no more of the smoothing
PRECISE, STEPS = 1e-5, 400  # of conjugate gradients


class Alike(NamedTuple):
    """The differences of neighbours: widths `[s]` where they are alike and where they are not, and
    the share of pairs that are not."""

    width: Float[Array, " s"]
    edge: Float[Array, " s"]
    share: Float[Array, ""]


def odds(alike: Alike, squares: Float[Array, "s *map"]) -> Float[Array, "*map"]:
    """The probability of each pair to be alike."""
    near, far = _wide(alike, squares)
    logs = jnp.log(far / near) + 0.5 * squares * (1.0 / far**2 - 1.0 / near**2)
    return jax.nn.sigmoid(logs.sum(axis=0) + jnp.log1p(-alike.share) - jnp.log(alike.share))


def edges_learnt(alike: Alike, squares: Links) -> tuple[Alike, Links]:
    """The share of edges that is the most probable one, and the weights of the links at it
    (expectation maximisation, Dempster et al. 1977).

    **Arguments:**

    - `squares`: expected ones of the differences, `[s, ...]` along each axis.
    """

    def likelier(_, alike):
        edges = [1.0 - odds(alike, q) for q in squares]
        share = sum(e.sum() for e in edges) / sum(e.size for e in edges)
        return alike._replace(share=jnp.clip(share, *SHARES))

    alike = jax.lax.fori_loop(0, 5, likelier, alike)
    near, far = _wide(alike, squares[0])
    near_odds = [odds(alike, q) for q in squares]
    return alike, tuple(o / near**2 + (1.0 - o) / far**2 for o in near_odds)


def _wide(alike: Alike, squares):
    shape = (-1, *[1] * (squares.ndim - 1))
    return alike.width.reshape(shape), alike.edge.reshape(shape)


@jax.jit
def least_risk(
    estimate: Float[Array, "*map"], variance: Float[Array, "*map"], key: Array
) -> tuple[Array, Array, Array]:
    """For one unknown: the width and the width of edges with the least risk, and by what its errors
    are larger than the posterior variances say at these widths, as a standard deviation."""
    noise = jnp.sqrt(variance)
    shift = NUDGE * noise * jax.random.rademacher(key, estimate.shape, estimate.dtype)

    def at(ratio):
        smooth, alike, weights = smoothed(estimate, variance, ratio)
        # edges that come and go with the noise are part of its freedom
        follows = smoothed(estimate + shift, variance, ratio)[0] - smooth
        freedom = jnp.mean(shift * follows / (NUDGE * noise) ** 2)
        left = jnp.mean(shift * _with_weights(shift, variance, weights) / (NUDGE * noise) ** 2)
        off = jnp.minimum((estimate - smooth) ** 2 / variance, OUTLYING)
        return jnp.mean(off) - 1.0 + 2.0 * freedom, left, alike.width[0], alike.edge[0]

    risk, left, width, edge = jax.lax.map(at, jnp.asarray(TRIED))
    best = jnp.argmin(risk)
    excess = jnp.sqrt(jnp.maximum(risk[best] / left[best], 1.0))
    return width[best], edge[best], excess


def smoothed(
    estimate: Float[Array, "*map"], variance: Float[Array, "*map"], ratio: Float[Array, ""]
) -> tuple[Array, Alike, Links]:
    """A map whose neighbours are alike to `ratio` median standard deviations, but for the edges
    that are seen in it; and the links that it has in the end."""
    width = ratio * jnp.sqrt(jnp.median(variance))
    spread = jnp.maximum(jnp.std(estimate), FAR * width)

    def weights_at(out, alike):
        return edges_learnt(alike, tuple(d[None] ** 2 for d in differences(out, estimate.ndim)))

    def again(_, state):
        alike, weights = weights_at(*state)
        return _with_weights(estimate, variance, weights), alike

    begin = estimate, Alike(width[None], spread[None], jnp.asarray(EDGES))
    out, alike = jax.lax.fori_loop(0, ROUNDS, again, begin)
    return out, *weights_at(out, alike)


def _with_weights(estimate, variance, weights: Links):
    def times(v):
        return v / variance + tied(weights, v[None])[0]

    near = 1.0 / (1.0 / variance + strength(weights)[0])
    out, _ = jax.scipy.sparse.linalg.cg(
        times, estimate / variance, tol=PRECISE, maxiter=STEPS, M=lambda v: near * v
    )
    return out
