"""Fits of a map whose neighbouring pixels are alike: one inverse problem of all pixels.

Two neighbours are alike, with differences of a small width, or there is an edge between them, with
differences of a large one (`micjax.inference.maps.spatial.widths`). All pixels are moved by damped
Gauss-Newton with conjugate gradients; then for each pair follows how likely it is that there is an
edge, from the difference and its variance, which draws from the posterior tell (Papandreou and
Yuille 2010). Unknowns that are not named are each pixel's own.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from micjax.core.problem import InverseProblem
from micjax.inference.maps.result import MapFit
from micjax.inference.maps.rows import Given
from micjax.inference.maps.spatial.links import (
    Links,
    differences,
    neighbours,
    shaken,
    strain,
    strength,
    tied,
)
from micjax.inference.maps.spatial.whole import (
    ENOUGH,
    Maps,
    PixelEquations,
    Whole,
    check_names,
    diagonal,
    inverse,
    per_pixel,
)
from micjax.inference.maps.spatial.widths import (
    EDGES,
    PRECISE,
    STEPS,
    Alike,
    edges_learnt,
    least_risk,
)

DRAWS, LAST_DRAWS = 8, 16
VALLEY = 3.0  # nats, that another valley has to be deeper


def smooth_map(
    problem: InverseProblem,
    x: Any,
    y: Any,
    fit: MapFit,
    names: Sequence[str],
    *,
    known: Given | None = None,
    rounds: int = 20,
    report: Callable[[int, float], Any] = lambda done, scale: None,
) -> MapFit:
    """A `fit_map` again, with the knowledge that the unknowns `names` of neighbours are alike.

    How alike they are, and where they are not, is found from the data. Errors hold for that.

    **Arguments:**

    - `problem`, `x`, `y`, `known`: as of `fit_map`, the data in memory.
    - `fit`: of each pixel by itself, where this begins.
    - `names`: unknowns that are one number at a pixel. They are alike on the scale on which they
        are fitted: those above 0 in proportion.
    - `rounds`: at most, until none of these moves by more than a twentieth of its error.
    - `report`: told after each round, with the largest step that was left, in errors.

    **Returns:** as of `fit_map`, with `covariance`. A pixel without data stays without values.

    **Raises:** `ValueError` for a name that is no unknown or not one number, none, a map of one
    pixel, or data that are not of the map.
    """
    names = [names] if isinstance(names, str) else list(names)
    check_names("smooth", problem, fit, names)
    with jax.enable_x64(True):
        return _Together(problem, x, y, fit, names, known).run(rounds, report)


class _Together(Whole):
    def run(self, rounds: int, report) -> MapFit:
        flat, key, count = self.begun(), jax.random.key(0), len(self.owner)
        here = self.equations(flat)
        damping = jnp.full(self.map, 1e-3)
        own = _own_spread(here.curvature, self.where)
        keys = jax.random.split(key, len(own))
        each = [least_risk(*a) for a in zip(flat[self.where], own, keys, strict=True)]
        width, edge, excess = (jnp.stack(a) for a in zip(*each, strict=True))
        alike, weights = _edges(
            Alike(width, edge, jnp.asarray(EDGES)), self._apart(flat, jnp.zeros((1, *flat.shape)))
        )
        left = np.inf
        for done in range(rounds):
            move, size = _step(here, weights, self.where, flat, damping)
            move = jnp.clip(move, -self.leaps, self.leaps)
            flat, here, damping = self._moved(
                flat, here, damping, flat - move, weights, 0.0, np.ones(self.map, bool)
            )
            # a pixel whose own fit is in another valley; not two neighbours at once, of which each
            # would take the place of the other
            turn = np.indices(self.map).sum(axis=0) % 2 == done % 2
            flat, here, damping = self._moved(
                flat, here, damping, self._middle(flat), weights, VALLEY, turn
            )
            # the same numbers each time, so that it comes to rest
            errors = _draws(key, here, weights, self.where, (DRAWS, count))
            alike, weights = _edges(alike, self._apart(flat, errors))
            left = float(jnp.quantile(jnp.abs(move)[self.where] / size[self.where], 0.999))
            report(done + 1, left)
            if left < ENOUGH and done > 2:
                break
        errors = _draws(key, here, weights, self.where, (LAST_DRAWS, count))
        larger = jnp.ones(count).at[self.where].set(excess).reshape(-1, *[1] * self.dims)
        covariance = _covariance(here, weights, self.where, errors) * larger[:, None] * larger
        return self.told(flat, here, covariance, move / jnp.sqrt(diagonal(covariance)))

    def _moved(self, flat, here, damping, ahead, weights, margin: float, turn) -> tuple:
        """The new values at those pixels whose `turn` it is and where they are better."""
        there = self.equations(ahead)
        return _better(flat, here, damping, ahead, there, weights, self.where, margin, turn)

    def _middle(self, flat: Maps) -> Maps:
        """Of the neighbours of each pixel; the noise is its own."""
        middle = _middle(flat, self.dims)
        return middle if self.noise is None else middle.at[self.noise].set(flat[self.noise])

    def _apart(self, flat: Maps, errors) -> Links:
        """The expected squares of the differences of neighbours."""
        squares = [d**2 for d in differences(flat[self.where], self.dims)]
        more = differences(errors[:, self.where], self.dims)
        return tuple(s + (m**2).mean(axis=0) for s, m in zip(squares, more, strict=True))


# --- normal equations of all pixels together ----------------------------------------------------


_edges = jax.jit(edges_learnt)


def _own_spread(curvature: Float[Array, "d d *map"], where) -> Float[Array, "s *map"]:
    """Variances of each pixel by itself."""
    return diagonal(inverse(curvature))[where]


def _with_links(curvature, weights: Links, where, damping=0.0):
    """The matrix of each pixel if its neighbours stand still."""
    own = damping * diagonal(curvature)
    own = own.at[where].add(strength(weights))
    i = np.arange(len(own))
    return curvature.at[i, i].add(own)


def _system(curvature, weights: Links, where, right, damping=0.0):
    """Solves for all pixels together, `right` of shape `[*, d, *map]`."""
    near = inverse(_with_links(curvature, weights, where, damping))
    i = np.arange(len(curvature))
    matrix = curvature.at[i, i].add(damping * diagonal(curvature))
    lead = (slice(None),) * (right.ndim - near.ndim + 1)

    def times(v):
        return per_pixel(matrix, v).at[(*lead, where)].add(tied(weights, v[(*lead, where)]))

    solution, _ = jax.scipy.sparse.linalg.cg(
        times, right, tol=PRECISE, maxiter=STEPS, M=lambda v: per_pixel(near, v)
    )
    return solution


@jax.jit
def _better(
    flat, here: PixelEquations, damping, ahead, there: PixelEquations, weights, where, margin, turn
):
    before = here.loss + strain(weights, flat[where], flat[where]).sum(axis=0)
    # of a step all take part; of a pixel that goes elsewhere its neighbours stand still
    around = jnp.where(margin > 0.0, flat[where], ahead[where])
    after = there.loss + strain(weights, ahead[where], around).sum(axis=0)
    better = turn & jnp.isfinite(after) & (after <= before - margin + 1e-9 * jnp.abs(before))
    eased = jnp.where(better, jnp.maximum(0.1 * damping, 1e-9), 10.0 * damping)
    damping = jnp.where(margin > 0.0, jnp.where(better, 1e-3, damping), jnp.minimum(eased, 1e6))
    chosen = jax.tree.map(lambda a, b: jnp.where(better, a, b), (ahead, there), (flat, here))
    return *chosen, damping


@functools.partial(jax.jit, static_argnums=1)
def _middle(flat: Maps, dims: int) -> Maps:
    return jnp.median(jnp.stack(list(neighbours(flat, dims))), axis=0)


@jax.jit
def _step(here: PixelEquations, weights: Links, where, flat: Maps, damping):
    """What is to be taken off, and the standard deviation of each pixel with neighbours fixed."""
    slope = here.slope.at[where].add(tied(weights, flat[where]))
    near = inverse(_with_links(here.curvature, weights, where))
    return _system(here.curvature, weights, where, slope, damping), jnp.sqrt(diagonal(near))


@functools.partial(jax.jit, static_argnames="shape")
def _draws(key, here: PixelEquations, weights: Links, where, shape: tuple[int, int]):
    """From the posterior, about its middle: `[draw, d, *map]`."""
    of_pixels, of_links = jax.random.split(key)
    draws, d = shape
    rows = jnp.moveaxis(here.curvature, (0, 1), (-2, -1))
    scale = jnp.sqrt(jnp.maximum(jnp.diagonal(rows, axis1=-2, axis2=-1), 1e-30))
    alike = rows / (scale[..., :, None] * scale[..., None, :]) + 1e-9 * jnp.eye(d)
    low = jnp.moveaxis(jnp.linalg.cholesky(alike) * scale[..., :, None], (-2, -1), (0, 1))
    right = per_pixel(low, jax.random.normal(of_pixels, (draws, *here.slope.shape)))
    right = right.at[:, where].add(shaken(of_links, weights, (draws, len(where))))
    return _system(here.curvature, weights, where, right)


@jax.jit
def _covariance(here: PixelEquations, weights: Links, where, draws):
    """Of each pixel: with its neighbours fixed, and what these do as they move."""
    near = inverse(_with_links(here.curvature, weights, where))
    pull = strength(weights) * draws[:, where] - tied(weights, draws[:, where])
    moved = per_pixel(near, jnp.zeros_like(draws).at[:, where].set(pull))
    return near + jnp.einsum("ki...,kj...->ij...", moved, moved) / len(draws)
