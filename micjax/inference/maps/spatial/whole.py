"""All pixels of a map together: their normal equations, and what is told of them in the end."""

from collections.abc import Sequence
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
from micjax.inference.maps.rows import rows as in_rows
from micjax.inference.maps.status import STATUS, at_bound, left_of, noise_scale
from micjax.inference.solvers.laws import law_of

CHUNK = 128
AT_BOUND = 15.0  # in unconstrained coordinates
ENOUGH = 0.05  # of its standard deviation: a step that is no step

Maps = Float[Array, "d *map"]


class PixelEquations(NamedTuple):
    """Of each pixel: loss and chi^2 `[*map]`, slope `[d, *map]`, curvature `[d, d, *map]`."""

    loss: Array
    chi_squared: Array
    slope: Array
    curvature: Array


def check_names(what: str, problem: InverseProblem, fit: MapFit, names: Sequence[str]) -> None:
    """**Raises:** `ValueError` for names that are no unknowns or not one number at a pixel, none of
    them, a map of one pixel or without a fit."""
    owner = Pixel(problem, None).coordinates({}).owner
    for name in names:
        if name not in problem.unknowns():
            raise ValueError(f"{what}: " + unknown_name("unknown", name, problem.unknowns()))
        if np.sum(owner == name) != 1:
            raise ValueError(f"{what}: {name} is {np.sum(owner == name)} numbers at a pixel, not 1")
    if not names or fit.status.size < 2:
        raise ValueError(f"{what}: {len(names)} names and a map of {fit.status.shape}: too few")
    if not fit.usable().any():
        raise ValueError(f"{what}: no pixel of the map has a fit to begin with")


class Whole:
    """The problem of all pixels, beginning where each of them has ended by itself.

    **Arguments:**

    - `names`: unknowns that pixels have to do with each other by.
    - `y`, `known`: as of `fit_map`, in memory.
    """

    def __init__(
        self,
        problem: InverseProblem,
        x: Any,
        y: Any,
        fit: MapFit,
        names: Sequence[str],
        known: Given | None,
    ):
        pixel = Pixel(problem, jax.tree.map(jnp.asarray, x))
        self.pixel, self.fit, self.map = pixel, fit, fit.status.shape
        law = eqx.filter_eval_shape(lambda p: p.problem.noise(p.problem.forward(p.x)), pixel)
        self.law, wanted = law_of(law), self.map + tuple(law.batch_shape)
        y = y if hasattr(y, "dtype") else np.asarray(y)
        if tuple(y.shape) != wanted or np.dtype(y.dtype).kind not in "fiu":
            raise ValueError(
                f"data of shape {tuple(y.shape)} and {y.dtype}; real ones of {wanted} are needed"
            )
        data = in_rows(y, self.map, 0, fit.status.size)  # what is masked does not count
        self.y = self._chunks(np.asarray(data, float).reshape(fit.status.size, -1))
        self.known = self._chunks(maps(problem, dict(known or {}), self.map, "known"))
        coordinates, unknowns = pixel.coordinates({}), problem.unknowns()
        self.owner, self.dims = coordinates.owner, len(self.map)
        self.where = np.array([int(np.flatnonzero(self.owner == n)[0]) for n in names])
        noise = noise_scale(pixel, self.law)
        self.noise = None if noise in self.where else noise
        theta = problem.unconstrain(problem.values())
        widths = [prior_sd_of(unknowns[n], theta[n]) for n in coordinates.names]
        self.prior_sd = np.concatenate(widths)
        self.leaps = jnp.asarray(pixel.leaps()).reshape(-1, *[1] * self.dims)

    def begun(self) -> Maps:
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

    def equations(self, flat: Maps) -> PixelEquations:
        rows = jnp.moveaxis(flat, 0, -1).reshape(-1, len(flat))
        of_chunks = _each(self.pixel, self.law, self.known, self.y, self._chunks(rows, jnp))
        loss, chi_squared, slope, triangles = (self._as_maps(a) for a in of_chunks)
        if self.noise is not None:  # which is corrected for what is fitted, and no maximum
            slope = slope.at[self.noise].set(0.0)
            lower = np.stack(triangle(len(flat)))
            others = np.flatnonzero((lower == self.noise).sum(axis=0) == 1)
            triangles = triangles.at[others].set(0.0)
        square = np.zeros((len(flat), len(flat)), int)
        square[triangle(len(flat))] = np.arange(len(triangles))
        return PixelEquations(loss, chi_squared, slope, triangles[np.maximum(square, square.T)])

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

    def told(self, flat: Maps, here: PixelEquations, covariance, left: Maps) -> MapFit:
        """**Arguments:**

        - `covariance`: `[d, d, *map]`. `left`: the last step, in standard deviations.
        """
        rows = jnp.moveaxis(flat, 0, -1).reshape(-1, len(flat))
        spread = jnp.moveaxis(covariance, (0, 1), (-2, -1)).reshape(-1, len(flat), len(flat))
        known = jax.tree.map(lambda a: pixels_first(a)[: len(rows)], self.known)
        values, sd, physical = _physical(self.pixel, known, rows, spread)
        old, unknowns = self.fit, self.pixel.problem.unknowns()
        lost = ~old.usable()

        def shaped(a):
            a = np.array(a)[: lost.size].reshape(*self.map, *a.shape[1:])
            a[lost] = np.nan
            return a

        values, sd = ({n: shaped(a) for n, a in d.items()} for d in (values, sd))
        learnt = np.sqrt(np.asarray(diagonal(covariance))) <= PRIOR_RULES * self.prior_sd.reshape(
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
            *map(
                shaped, _left_of(self.pixel, self.law, self.known, self.y, self._chunks(rows, jnp))
            ),
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
def _left_of(pixel: Pixel, law, known, y, flat):
    """Of each pixel."""
    left = jax.lax.map(lambda some: left_of(pixel, law, *some), (known, y, flat))
    return jax.tree.map(jnp.ravel, left)


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


def diagonal(matrices: Float[Array, "d d *map"]) -> Maps:
    return jnp.moveaxis(jnp.diagonal(matrices), -1, 0)


def inverse(matrices: Float[Array, "d d *map"]) -> Float[Array, "d d *map"]:
    rows = jnp.moveaxis(matrices, (0, 1), (-2, -1))
    scale = jax.lax.rsqrt(jnp.maximum(jnp.diagonal(rows, axis1=-2, axis2=-1), 1e-30))
    outer = scale[..., :, None] * scale[..., None, :]
    least = 1e-9 * jnp.eye(rows.shape[-1])
    return jnp.moveaxis(jnp.linalg.inv(rows * outer + least) * outer, (-2, -1), (0, 1))


def per_pixel(matrices: Float[Array, "d d *map"], v: Float[Array, "..."]):
    if v.ndim == matrices.ndim:
        return jnp.einsum("ij...,kj...->ki...", matrices, v)
    return jnp.einsum("ij...,j...->i...", matrices, v)
