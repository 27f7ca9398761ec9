"""Fits of a map some of whose unknowns are the same for many pixels: one quality factor, a drift of
the energy from column to column.

Such a problem has the shape of an arrow: pixels have to do with each other only by what they share.
What is each pixel's own is eliminated pixel by pixel (the Schur complement; as bundle adjustment
does, Triggs et al. 2000), which leaves a system as large as there are shared numbers.
"""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from micjax.core.problem import InverseProblem
from micjax.inference.maps.equations import Pixel
from micjax.inference.maps.result import MapFit
from micjax.inference.maps.rows import Given
from micjax.inference.maps.spatial.whole import (
    Maps,
    PixelEquations,
    Whole,
    check_names,
    diagonal,
    inverse,
    per_pixel,
)

OVER = ("map", "row", "column")
MOST = 4000  # shared numbers, whose system is solved as it is
LARGEST_DAMPING = 1e7


def share_map(
    problem: InverseProblem,
    x: Any,
    y: Any,
    fit: MapFit,
    shared: Mapping[str, str],
    *,
    known: Given | None = None,
    rounds: int = 50,
    tolerance: float = 1e-3,
    report: Callable[[int, float], Any] = lambda done, gain: None,
) -> MapFit:
    """A `fit_map` again, with unknowns that are the same for many pixels.

    **Arguments:**

    - `problem`, `x`, `y`, `known`: as of `fit_map`, the data in memory.
    - `fit`: of each pixel by itself, where this begins.
    - `shared`: unknowns that are one number at a pixel, by name, and what has one of them: the
        `map`, each `row` (the last axis of the map runs along it) or each `column`.
    - `rounds`: at most, until one is expected to gain less than `tolerance` nats.
    - `report`: told after each round, with what the next one is expected to gain.

    **Returns:** as of `fit_map`, with `covariance`, what is shared at each of its pixels. Its prior
    counts once.

    **Raises:** `ValueError` for a name that is no unknown or not one number, no name, another word,
    rows of a map that is a line, too many shared numbers, or data that are not of the map.
    """
    if not isinstance(shared, Mapping):
        raise ValueError(f"shared = {shared!r}: names with map, row or column each are needed")
    check_names("shared", problem, fit, list(shared))
    shape = fit.status.shape
    for name, over in shared.items():
        if over not in OVER:
            raise ValueError(f"shared: {name} over {over!r}; one of {', '.join(OVER)} is needed")
        if over != "map" and len(shape) != 2:
            raise ValueError(f"shared: {name} over each {over} of a map of {shape}, which has none")
    groups = _groups(shape, list(shared.values()))
    if (count := int(groups.max()) + 1) > MOST:
        raise ValueError(f"shared: {count} numbers are shared; {MOST} at most can be")
    with jax.enable_x64(True):
        whole = _Sharing(problem, x, y, fit, list(shared), known)
        return whole.run(jnp.asarray(groups), count, rounds, tolerance, report)


def _groups(shape: tuple[int, ...], over: list[str]) -> np.ndarray:
    """Which of all shared numbers each pixel has, `[s, *map]`."""
    out, first = [], 0
    for word in over:
        index = np.zeros(shape, int)
        if word != "map":
            index = np.indices(shape)[0 if word == "row" else 1]
        out.append(index + first)
        first += int(index.max()) + 1
    return np.stack(out)


class _Sharing(Whole):
    def run(self, groups, count: int, rounds: int, tolerance: float, report) -> MapFit:
        there = jnp.asarray(self.fit.usable())
        flat = self.begun()
        flat = flat.at[self.where].set(_middles(flat[self.where], there, groups, count))
        here, damping = self._once(flat, groups, count), 1e-3
        for done in range(rounds):
            move, gain, covariance = _step(
                here, tuple(self.where.tolist()), groups, there, count, jnp.asarray(damping)
            )
            report(done + 1, float(gain))
            if gain < tolerance and damping <= 0.1:
                break
            ahead = flat - jnp.clip(move, -self.leaps, self.leaps)
            new = self._once(ahead, groups, count)
            # what is shared moves for all; a pixel whose own values get worse by it keeps them
            held = flat.at[self.where].set(ahead[self.where])
            kept = self._once(held, groups, count)
            ahead, new = _lower(ahead, new, held, kept)
            before, after = (jnp.where(there, e.loss, 0.0).sum() for e in (here, new))
            if jnp.isfinite(after) and after <= before:
                flat, here, damping = ahead, new, max(0.1 * damping, 1e-9)
            elif (damping := 10.0 * damping) > LARGEST_DAMPING:
                break
        size = jnp.sqrt(jnp.maximum(diagonal(covariance), 1e-300))
        return self.told(flat, here, covariance, move / size)

    def _once(self, flat: Maps, groups, count: int) -> PixelEquations:
        """The equations with the prior of what is shared counted once for all pixels of a group."""
        here = self.equations(flat)
        # a pixel without a fit has no part in it
        members = jnp.zeros(count).at[groups].add(jnp.asarray(self.fit.usable(), float))
        share = 1.0 - 1.0 / jnp.maximum(members[groups], 1.0)
        rows = jnp.moveaxis(flat, 0, -1).reshape(-1, len(flat))
        value, slope, curvature = _priors(self.pixel, tuple(self.owner[self.where].tolist()), rows)
        value, slope, curvature = (
            jnp.moveaxis(a, 0, -1).reshape(len(self.where), *self.map)
            for a in (value, slope[:, self.where], curvature[:, self.where])
        )
        i = self.where
        return here._replace(
            loss=here.loss + (share * value).sum(axis=0),
            slope=here.slope.at[i].add(share * slope),
            curvature=here.curvature.at[i, i].add(-share * curvature),
        )


@eqx.filter_jit
def _priors(pixel: Pixel, names: tuple[str, ...], rows):
    """Of each of these unknowns its log prior `[pixel, s]`; of all of them the slope and what is
    convex of the curvature `[pixel, d]`, as the equations have them."""

    def logs(flat):
        coordinates, unknowns = pixel.coordinates({}), pixel.problem.unknowns()
        values = coordinates.values(flat)
        return jnp.stack([jnp.sum(unknowns[n].log_prob(values[n])) for n in names])

    def of_one(flat):
        def total(q):
            return logs(q).sum()

        convex = jnp.maximum(-jnp.diagonal(jax.hessian(total)(flat)), 0.0)
        return logs(flat), jax.grad(total)(flat), convex

    return jax.lax.map(of_one, rows)


def _middles(values, there, groups, count: int) -> Array:
    """The median of the pixels that have one number together."""
    flat, index = np.asarray(values), np.asarray(groups)
    out = np.array(flat)
    for s in range(len(flat)):
        for group in np.unique(index[s]):
            some = (index[s] == group) & np.asarray(there)
            out[s][index[s] == group] = np.median(flat[s][some if some.any() else there])
    return jnp.asarray(out)


@eqx.filter_jit
def _lower(ahead, new: PixelEquations, held, kept: PixelEquations):
    better = ~(kept.loss < new.loss) & jnp.isfinite(new.loss)
    return jax.tree.map(lambda a, b: jnp.where(better, a, b), (ahead, new), (held, kept))


@eqx.filter_jit
def _step(here: PixelEquations, shared: tuple[int, ...], groups, there, count: int, damping):
    """What is to be taken off, what that is expected to gain, and the covariance of each pixel."""
    where, d, s = np.array(shared), len(here.slope), len(shared)
    own = np.setdiff1d(np.arange(d), where)
    diagonals = here.curvature.at[np.arange(d), np.arange(d)]
    matrix = diagonals.add(damping * diagonal(here.curvature))
    solve = inverse(matrix[np.ix_(own, own)])
    cross, slope_own = matrix[np.ix_(own, where)], here.slope[own]
    # of each pixel, were what is its own to follow
    lent = jnp.einsum("ij...,jk...->ik...", solve, cross)
    left = matrix[np.ix_(where, where)] - jnp.einsum("ji...,jk...->ik...", cross, lent)
    slope = here.slope[where] - jnp.einsum("ji...,j...->i...", lent, slope_own)
    left, slope = (jnp.where(there, a, 0.0) for a in (left, slope))
    system, right = jnp.zeros((count, count)), jnp.zeros(count)
    for i in range(s):
        right = right.at[groups[i]].add(slope[i])
        for j in range(s):
            system = system.at[groups[i], groups[j]].add(left[i, j])
    scale = jax.lax.rsqrt(jnp.maximum(jnp.diagonal(system), 1e-30))
    alike = system * scale[:, None] * scale + 1e-12 * jnp.eye(count)
    spread = jnp.linalg.inv(alike) * scale[:, None] * scale
    shared = (spread @ right)[groups]
    follow = per_pixel(solve, slope_own) - per_pixel(lent, shared)
    move = jnp.zeros_like(here.slope).at[where].set(shared).at[own].set(follow)
    gain = 0.5 * jnp.where(there, here.slope * move, 0.0).sum()
    both = spread[groups[:, None], groups[None, :]]
    tied = -jnp.einsum("ij...,jk...->ik...", lent, both)
    covariance = jnp.zeros_like(here.curvature)
    covariance = covariance.at[where[:, None], where[None, :]].set(both)
    covariance = covariance.at[own[:, None], where[None, :]].set(tied)
    covariance = covariance.at[where[:, None], own[None, :]].set(jnp.swapaxes(tied, 0, 1))
    of_own = solve - jnp.einsum("ij...,kj...->ik...", tied, lent)
    return move, gain, covariance.at[own[:, None], own[None, :]].set(of_own)
