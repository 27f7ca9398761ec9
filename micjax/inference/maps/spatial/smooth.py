"""Fits of a map whose neighbouring pixels are alike: one inverse problem of all pixels.

Two neighbours are alike, with differences of a small width, or there is an edge between them, with
differences of a large one (`micjax.inference.maps.spatial.widths`). All pixels are moved by damped
Gauss-Newton with conjugate gradients; then for each pair follows how likely it is that there is an
edge, from the difference and its variance, which draws from the posterior tell (Papandreou and
Yuille 2010). Unknowns that are not named are each pixel's own.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from jaxtyping import Array, Float

from micjax.core.names import unknown_name
from micjax.core.problem import InverseProblem
from micjax.inference.errors.laplace import PRIOR_RULES, prior_sd_of
from micjax.inference.maps.equations import Pixel, equations, triangle
from micjax.inference.maps.programs import compiled, pixels_first, side_by_side
from micjax.inference.maps.result import MapFit
from micjax.inference.maps.rows import Given, maps
from micjax.inference.maps.spatial.links import (
    Links,
    differences,
    neighbours,
    shaken,
    strain,
    strength,
    tied,
)
from micjax.inference.maps.spatial.widths import (
    EDGES,
    PRECISE,
    STEPS,
    Alike,
    edges_learnt,
    least_risk,
)
from micjax.inference.maps.status import STATUS, at_bound, noise_scale
from micjax.inference.solvers.laws import law_of

CHUNK = 128
DRAWS, LAST_DRAWS = 8, 16
AT_BOUND = 15.0  # in unconstrained coordinates
VALLEY = 3.0  # nats, that another valley has to be deeper
ENOUGH = 0.05  # of its standard deviation: a step that is no step

Maps = Float[Array, "d *map"]


class Equations(NamedTuple):
    """Of each pixel: loss and chi^2 `[*map]`, slope `[d, *map]`, curvature `[d, d, *map]`."""

    loss: Array
    chi_squared: Array
    slope: Array
    curvature: Array


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

    **Raises:** `ValueError` for a name that is no unknown or not one number, none, or a map of one
    pixel.
    """
    pixel = Pixel(problem, jax.tree.map(jnp.asarray, x))
    shape, owner = fit.status.shape, pixel.coordinates({}).owner
    for name in names:
        if name not in problem.unknowns():
            raise ValueError("smooth: " + unknown_name("unknown", name, problem.unknowns()))
        if np.sum(owner == name) != 1:
            raise ValueError(f"smooth: {name} is {np.sum(owner == name)} numbers at a pixel, not 1")
    if not names or max(shape) < 2:
        raise ValueError(f"smooth: {len(names)} names and a map of {shape}: nothing is alike")
    if not fit.usable().any():
        raise ValueError("smooth: no pixel of the map has a fit to begin with")
    with jax.enable_x64(True):
        return _Together(pixel, y, fit, names, known).run(rounds, report)


class _Together:
    """All pixels of a map."""

    def __init__(self, pixel: Pixel, y, fit: MapFit, names: Sequence[str], known):
        self.pixel, self.fit, self.map = pixel, fit, fit.status.shape
        self.law = law_of(
            eqx.filter_eval_shape(lambda p: p.problem.noise(p.problem.forward(p.x)), pixel)
        )
        dims, problem = len(self.map), pixel.problem
        flat = np.asarray(y, float).reshape(fit.status.size, -1)
        self.y = self._chunks(flat)
        self.known = self._chunks(maps(problem, dict(known or {}), self.map, "known"))
        coordinates, unknowns = pixel.coordinates({}), problem.unknowns()
        self.where = np.array([int(np.flatnonzero(coordinates.owner == n)[0]) for n in names])
        self.owner, self.dims = coordinates.owner, dims
        self.noise = noise_scale(pixel, self.law)
        theta = problem.unconstrain(problem.values())
        widths = [prior_sd_of(unknowns[n], theta[n]) for n in coordinates.names]
        self.prior_sd = np.concatenate(widths)
        self.leaps = jnp.asarray(pixel.leaps()).reshape(-1, *[1] * dims)

    def run(self, rounds: int, report) -> MapFit:
        flat, key, count = self._begun(), jax.random.key(0), len(self.owner)
        here = self._equations(flat)
        damping = jnp.full(self.map, 1e-3)
        own = _own_spread(here.curvature, self.where)
        keys = jax.random.split(key, len(own))
        found = [least_risk(*a) for a in zip(flat[self.where], own, keys, strict=True)]
        width, edge, excess = (jnp.stack(a) for a in zip(*found, strict=True))
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
        return self._told(flat, here, covariance, move / jnp.sqrt(_diagonal(covariance)))

    def _begun(self) -> Maps:
        """Where the fits of the pixels have ended; without one, where the nearest has."""
        usable = self.fit.usable()
        nearest = scipy.ndimage.distance_transform_edt(
            ~usable, return_distances=False, return_indices=True
        )
        values = {n: v[tuple(nearest)] for n, v in self.fit.values.items()}
        rows = {n: v.reshape(usable.size, *v.shape[usable.ndim :]) for n, v in values.items()}
        rows = {n: np.asarray(v, float) for n, v in rows.items()}
        flat = self._as_maps(compiled().flat(self.pixel, self.known, self._chunks(rows)))
        # what lies on a bound to the last digit is infinitely far away
        return jnp.where(jnp.isfinite(flat), flat, AT_BOUND * jnp.sign(jnp.nan_to_num(flat)))

    def _equations(self, flat: Maps) -> Equations:
        rows = jnp.moveaxis(flat, 0, -1).reshape(-1, len(flat))
        found = _each(self.pixel, self.law, self.known, self.y, self._chunks(rows, jnp))
        loss, chi_squared, slope, triangles = (self._as_maps(a) for a in found)
        if self.noise is not None:  # which is corrected for what is fitted, and no maximum
            slope = slope.at[self.noise].set(0.0)
            lower = np.stack(triangle(len(flat)))
            others = np.flatnonzero((lower == self.noise).sum(axis=0) == 1)
            triangles = triangles.at[others].set(0.0)
        square = np.zeros((len(flat), len(flat)), int)
        square[triangle(len(flat))] = np.arange(len(triangles))
        return Equations(loss, chi_squared, slope, triangles[np.maximum(square, square.T)])

    def _moved(self, flat, here, damping, ahead, weights, margin: float, turn) -> tuple:
        """The new values at those pixels whose `turn` it is and where they are better."""
        there = self._equations(ahead)
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

    def _chunks(self, rows, np_=np):
        def of(a):
            missing = -len(a) % CHUNK
            a = np_.concatenate([a, np_.repeat(a[-1:], missing, axis=0)])
            return side_by_side(a, CHUNK, np_)

        return jax.tree.map(of, rows)

    def _as_maps(self, chunks: Array) -> Array:
        rows = pixels_first(chunks)[: self.fit.status.size]
        return jnp.moveaxis(
            rows.reshape(*self.map, *rows.shape[1:]), range(self.dims), range(-self.dims, 0)
        )

    def _told(self, flat, here: Equations, covariance, left) -> MapFit:
        rows = jnp.moveaxis(flat, 0, -1).reshape(-1, len(flat))
        spread = jnp.moveaxis(covariance, (0, 1), (-2, -1)).reshape(-1, len(flat), len(flat))
        known = jax.tree.map(lambda a: pixels_first(a)[: len(rows)], self.known)
        values, sd, physical = _physical(self.pixel, known, rows, spread)
        old, unknowns = self.fit, self.pixel.problem.unknowns()
        lost = ~old.usable()

        def shaped(a):
            a = np.array(a).reshape(*self.map, *a.shape[1:])
            a[lost] = np.nan
            return a

        values, sd = ({n: shaped(a) for n, a in d.items()} for d in (values, sd))
        learnt = np.sqrt(np.asarray(_diagonal(covariance))) <= PRIOR_RULES * self.prior_sd.reshape(
            -1, *[1] * self.dims
        )
        identified = {n: old.identified[n] | learnt[self.owner == n].all(axis=0) for n in values}
        bound = {n: _at_bound(unknowns[n], values[n], sd[n], self.dims) for n in values}
        kept = np.isin(old.status, [STATUS.index(s) for s in ("no data", "too few data")]) | lost
        unsettled = np.asarray(jnp.abs(left[self.where]).max(axis=0)) > 5.0 * ENOUGH
        status = np.select(
            [
                kept,
                unsettled,
                ~np.stack(list(identified.values())).all(axis=0),
                np.stack(list(bound.values())).any(axis=0),
            ],
            [old.status]
            + [STATUS.index(s) for s in ("not converged", "not identified", "at a bound")],
            STATUS.index("converged"),
        )
        return MapFit(
            values,
            sd,
            status,
            np.where(lost, np.nan, here.loss),
            np.where(lost, np.nan, here.chi_squared),
            old.points,
            bound,
            identified,
            old.steps,
            shaped(physical),
        )


def _at_bound(prior, value, sd, dims: int) -> np.ndarray:
    last = (jnp.moveaxis(jnp.reshape(a, (-1, *a.shape[dims:])), 0, -1) for a in (value, sd))
    return np.asarray(at_bound(prior, *last)).reshape(value.shape[:dims])


@eqx.filter_jit
def _each(pixel: Pixel, law, known, y, flat):
    def of(some):
        here = equations(pixel, law, *some)
        return here.loss, here.chi_squared, here.slope, here.curvature

    return jax.lax.map(of, (known, y, flat))


@eqx.filter_jit
def _physical(pixel: Pixel, known, flat, covariance):
    """Values, their standard deviations and their covariance, `[pixel, ...]`."""

    def of_one(known, flat, covariance):
        coordinates = pixel.coordinates(known)
        values, slopes = coordinates.values(flat), jax.jacfwd(coordinates.values)(flat)
        names, d = coordinates.names, len(flat)
        every = jnp.concatenate([slopes[n].reshape(-1, d) for n in names])
        physical = every @ covariance @ every.T
        sd = jnp.sqrt(jnp.diagonal(physical))
        ends = np.cumsum([values[n].size for n in names])[:-1]
        parts = zip(names, jnp.split(sd, ends), strict=True)
        sd = {n: part.reshape(values[n].shape) for n, part in parts}
        return {n: values[n] for n in names}, sd, physical

    return jax.vmap(of_one)(known, flat, covariance)


# --- normal equations of all pixels together ----------------------------------------------------


def _diagonal(matrices: Float[Array, "d d *map"]) -> Maps:
    return jnp.moveaxis(jnp.diagonal(matrices), -1, 0)


def _inverse(matrices: Float[Array, "d d *map"]) -> Float[Array, "d d *map"]:
    rows = jnp.moveaxis(matrices, (0, 1), (-2, -1))
    scale = jax.lax.rsqrt(jnp.maximum(jnp.diagonal(rows, axis1=-2, axis2=-1), 1e-30))
    outer = scale[..., :, None] * scale[..., None, :]
    least = 1e-9 * jnp.eye(rows.shape[-1])
    return jnp.moveaxis(jnp.linalg.inv(rows * outer + least) * outer, (-2, -1), (0, 1))


_edges = jax.jit(edges_learnt)


def _own_spread(curvature: Float[Array, "d d *map"], where) -> Float[Array, "s *map"]:
    """Variances of each pixel by itself."""
    return _diagonal(_inverse(curvature))[where]


def _with_links(curvature, weights: Links, where, damping=0.0):
    """The matrix of each pixel if its neighbours stand still."""
    own = damping * _diagonal(curvature)
    own = own.at[where].add(strength(weights))
    i = np.arange(len(own))
    return curvature.at[i, i].add(own)


def _system(curvature, weights: Links, where, right, damping=0.0):
    """Solves for all pixels together, `right` of shape `[*, d, *map]`."""
    near = _inverse(_with_links(curvature, weights, where, damping))
    i = np.arange(len(curvature))
    matrix = curvature.at[i, i].add(damping * _diagonal(curvature))
    lead = (slice(None),) * (right.ndim - near.ndim + 1)

    def times(v):
        return _per_pixel(matrix, v).at[(*lead, where)].add(tied(weights, v[(*lead, where)]))

    solution, _ = jax.scipy.sparse.linalg.cg(
        times, right, tol=PRECISE, maxiter=STEPS, M=lambda v: _per_pixel(near, v)
    )
    return solution


def _per_pixel(matrices: Float[Array, "d d *map"], v: Float[Array, "..."]):
    if v.ndim == matrices.ndim:
        return jnp.einsum("ij...,kj...->ki...", matrices, v)
    return jnp.einsum("ij...,j...->i...", matrices, v)


@jax.jit
def _better(flat, here: Equations, damping, ahead, there: Equations, weights, where, margin, turn):
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
def _step(here: Equations, weights: Links, where, flat: Maps, damping):
    """What is to be taken off, and the standard deviation of each pixel with neighbours fixed."""
    slope = here.slope.at[where].add(tied(weights, flat[where]))
    near = _inverse(_with_links(here.curvature, weights, where))
    return _system(here.curvature, weights, where, slope, damping), jnp.sqrt(_diagonal(near))


@functools.partial(jax.jit, static_argnames="shape")
def _draws(key, here: Equations, weights: Links, where, shape: tuple[int, int]):
    """From the posterior, about its middle: `[draw, d, *map]`."""
    of_pixels, of_links = jax.random.split(key)
    draws, d = shape
    rows = jnp.moveaxis(here.curvature, (0, 1), (-2, -1))
    scale = jnp.sqrt(jnp.maximum(jnp.diagonal(rows, axis1=-2, axis2=-1), 1e-30))
    alike = rows / (scale[..., :, None] * scale[..., None, :]) + 1e-9 * jnp.eye(d)
    low = jnp.moveaxis(jnp.linalg.cholesky(alike) * scale[..., :, None], (-2, -1), (0, 1))
    right = _per_pixel(low, jax.random.normal(of_pixels, (draws, *here.slope.shape)))
    right = right.at[:, where].add(shaken(of_links, weights, (draws, len(where))))
    return _system(here.curvature, weights, where, right)


@jax.jit
def _covariance(here: Equations, weights: Links, where, draws):
    """Of each pixel: with its neighbours fixed, and what these do as they move."""
    near = _inverse(_with_links(here.curvature, weights, where))
    pull = strength(weights) * draws[:, where] - tied(weights, draws[:, where])
    moved = _per_pixel(near, jnp.zeros_like(draws).at[:, where].set(pull))
    return near + jnp.einsum("ki...,kj...->ij...", moved, moved) / len(draws)
