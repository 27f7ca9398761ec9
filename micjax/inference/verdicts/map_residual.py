"""Errors of a map where the residuals of its pixels together are not the noise of the model."""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from micjax.core.problem import InverseProblem, Values
from micjax.inference.errors.incomplete import (
    NORMAL,
    between,
    growth,
    mean_and_sd,
    slopes_of,
    told_by_moments,
    unfitted,
)
from micjax.inference.maps.result import MapFit
from micjax.inference.maps.rows import Given, Rows, maps, rows
from micjax.inference.verdicts.correlation import correlations

CERTAIN = 5.0  # standard deviations of all pixels together
EXPLAINED = 1.1  # chi^2 of a datum
TOGETHER = 256  # pixels at a time
SAMPLED = 8  # times so many tell the covariance
FITS = 2  # of each of these tell what the fit took of it
APART = 6.0  # standard deviations of chi^2 beyond most pixels: a pixel that the model fails at


def widened_map(pixel: InverseProblem, x: Any, y: Any, fit: MapFit, known: Given) -> MapFit:
    """With the errors of the sandwich (see `micjax.inference.errors.incomplete`) where they are
    larger, of the covariance that the residuals of all pixels show together. Pixels at which the
    model fails alone, where chi^2 is far larger than in most, have no part in it: their own errors
    grow by the root of it.

    **Arguments:**

    - `pixel`: the problem of a pixel; `x`, `y`, `known` as of `fit_map`.
    - `fit`: with covariance.
    """
    usable = fit.usable().ravel()
    if fit.covariance is None or not usable.any():
        return fit
    apart, alike, times = _parted(fit)
    noise = _is_noise(fit, alike)
    kind = None if noise and not apart.any() else told_by_moments(pixel, x)
    if kind is None:
        return fit
    shape, pixels = fit.status.shape, fit.status.size
    own = maps(pixel, dict(known), shape, "known")
    every = {n: v.reshape(pixels, *v.shape[len(shape) :]) for n, v in fit.values.items()}
    every = own | {n: _filled(v, pixel.values()[n], usable) for n, v in every.items()}

    def some(first: int) -> tuple[slice, Rows]:
        part = slice(first, min(first + TOGETHER, pixels))
        # as many each time, for one program
        index = np.minimum(np.arange(first, first + TOGETHER), pixels - 1)
        return part, {n: v[index] for n, v in every.items()}

    def residuals(first: int) -> tuple[np.ndarray, np.ndarray]:
        part, values = some(first)
        data = rows(y, shape, part.start, part.stop).astype(float)
        mean, sd = (np.asarray(a)[: len(data)] for a in _moments(pixel, values, x))
        seen = np.isfinite(data) & alike[part][(..., *[None] * (data.ndim - 1))] & (sd > 0)
        return np.where(seen, (data - mean) / np.where(sd > 0, sd, 1.0), 0.0), seen

    firsts = list(range(0, pixels, TOGETHER))
    places = np.unique(np.linspace(0, len(firsts) - 1, SAMPLED).astype(int)).tolist()
    chosen = [firsts[i] for i in places]
    unit, seen = (np.concatenate(a) for a in zip(*map(residuals, chosen), strict=True))
    numbers = fit.covariance.shape[-1]
    complete = bool(np.all(fit.points.ravel()[usable] == unit[0].size))
    factors = np.ones((pixels, numbers))
    flat = fit.covariance.reshape(pixels, numbers, numbers).astype(float)

    def slopes(first: int) -> tuple[slice, np.ndarray, np.ndarray]:
        part, values = some(first)
        both = _slopes(pixel, values, x, kind, tuple(fit.values))  # in the order of the covariance
        of_mean, of_scale = (np.asarray(a, float)[: part.stop - first] for a in both)
        if not complete:
            there = np.isfinite(rows(y, shape, part.start, part.stop).astype(float))[:, None]
            of_mean, of_scale = np.where(there, of_mean, 0.0), np.where(there, of_scale, 0.0)
        return part, of_mean, of_scale

    of = correlations(unit, seen)
    white = np.zeros_like(of.products)
    white.ravel()[0] = 1.0
    covariance = white
    if not noise and seen.any():
        fitted = [(s := slopes(i))[1][alike[s[0]]][:FITS] for i in chosen]
        covariance = unfitted(of, np.concatenate(fitted))
    for first in firsts:
        if noise and not apart[first : first + TOGETHER].any():
            continue
        part, of_mean, of_scale = slopes(first)
        extra = between(of_mean, covariance) + 2.0 * between(of_scale, covariance**2)
        fails, own = apart[part], np.maximum(times[part, None, None], 1.0)
        # white, times what is left of the data of the pixel itself
        alone = between(of_mean, 2.0 * white) * (own - 1.0)
        alone += 2.0 * between(of_scale, 2.0 * white) * (own**2 - 1.0)
        factors[part] = growth(flat[part], np.where(fails[:, None, None], alone, extra))
    return _times(fit, np.where(np.isfinite(factors), factors, 1.0))


def _parted(fit: MapFit) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At which pixels the model fails as it does not at most; which tell what most have in common;
    chi^2 of a datum."""
    usable, numbers = fit.usable().ravel(), fit.covariance.shape[-1]
    points = np.maximum(fit.points.ravel() - numbers, 1)
    chi_squared = fit.chi_squared.ravel().astype(float) / points

    def beyond(values: np.ndarray, least: np.ndarray | float) -> np.ndarray:
        # the lower side is that of noise; of a normal law it is one standard deviation
        low, middle = np.quantile(values[usable], [0.159, 0.5])
        return values > middle + APART * np.maximum(middle - low, least)

    apart = usable & beyond(fit.excess.ravel(), 1.0)
    # chi^2 of rare counts may be anything by chance: no failure, and no noise of others either
    rare = beyond(chi_squared, np.sqrt(2.0 / points)) | beyond(fit.correlated.ravel(), 1.0)
    return apart, usable & ~apart & ~rare, chi_squared


def _is_noise(fit: MapFit, there: Bool[np.ndarray, "pixel"]) -> bool:
    """All these pixels together."""
    excess, chi_squared, points, correlated = (
        a.ravel()[there] for a in (fit.excess, fit.chi_squared, fit.points, fit.correlated)
    )
    if not excess.size:
        return True
    root = np.sqrt(excess.size)
    larger = np.mean(excess) * root > CERTAIN and chi_squared.sum() > EXPLAINED * points.sum()
    return bool(not larger and np.mean(correlated) * root < CERTAIN)


def _filled(values: np.ndarray, own: Array, usable: np.ndarray) -> np.ndarray:
    return np.where(usable[(..., *[None] * (values.ndim - 1))], values, np.asarray(own))


def _times(fit: MapFit, factors: Float[np.ndarray, "pixel k"]) -> MapFit:
    shape, sd, first = fit.status.shape, {}, 0
    for name, old in fit.sd.items():
        size = math.prod(old.shape[len(shape) :])
        sd[name] = (old * factors[:, first : first + size].reshape(old.shape)).astype(old.dtype)
        first += size
    outer = (factors[:, :, None] * factors[:, None, :]).reshape(fit.covariance.shape)
    covariance = (fit.covariance * outer).astype(fit.covariance.dtype)
    grown = factors.max(axis=1).reshape(shape).astype(fit.loss.dtype)
    return dataclasses.replace(fit, sd=sd, covariance=covariance, grown=grown)


@eqx.filter_jit
def _moments(pixel: InverseProblem, values: Values, x):
    return jax.vmap(lambda own: mean_and_sd(pixel.at(own), x))(values)


@eqx.filter_jit
def _slopes(pixel: InverseProblem, values: Values, x, kind: str, names: tuple[str, ...]):
    return jax.vmap(lambda own: _slopes_of_one(pixel, names, own, x, kind))(values)


def _slopes_of_one(pixel: InverseProblem, names: tuple[str, ...], values: Values, x, kind: str):
    """By the physical values, in the order of the names."""
    shapes = [jnp.shape(values[n]) for n in names]
    ends = np.cumsum([math.prod(s) for s in shapes])[:-1]

    def at(flat: Array) -> InverseProblem:
        parts = zip(names, jnp.split(flat, ends), shapes, strict=True)
        return pixel.at(values | {n: part.reshape(s) for n, part, s in parts})

    mean = jnp.concatenate([jnp.ravel(values[n]) for n in names])
    return slopes_of(at, mean, x, kind == NORMAL)
