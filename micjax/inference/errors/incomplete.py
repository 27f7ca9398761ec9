"""Errors where the residual is not the noise that the model says: larger, or not white.

With the curvature H of the posterior, the slopes J of the predictions in standard deviations and
the covariance R that the residual itself shows, estimates scatter by

    H^-1 (J^T R J + H - J^T J) H^-1

instead of H^-1 (the sandwich of Huber 1967 and White 1982, Econometrica 50, 1, of noise that is
stationary along the axes of the data: Newey and West 1987, Econometrica 55, 703).
"""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float

from micjax.core.coordinates import Coordinates
from micjax.core.joint import JointLaw
from micjax.core.problem import InverseProblem
from micjax.inference.errors.laplace import PRIOR_RULES, Laplace
from micjax.inference.verdicts.correlation import Correlations

NORMAL, COUNTS = "normal", "counts"
LARGEST = 30_000_000  # slopes, 0.25 GB of them
TIMES, SETTLED = 8, 1e-3  # what was fitted is put back, until it changes so little of the variance
FITTED = 1e-6  # of the largest: of slopes that are smaller nothing was

Data = Float[np.ndarray, "..."]
Seen = Bool[np.ndarray, "..."]


def widened(gaussian: Laplace, x, of: Correlations, seen: Seen) -> Laplace:
    """The errors of the sandwich, where they are larger; `grown` says by how much.

    Of normal noise and counts, and as many data and unknowns as have room; else as it was.

    **Arguments:**

    - `x`: where the data were measured.
    - `of`: the residual, in standard deviations of the noise of the model.
    - `seen`: where there are data.
    """
    size = len(gaussian.mean)
    if not size or size * seen.size > LARGEST:
        return gaussian
    with jax.enable_x64(True):
        names = tuple(gaussian.names)
        if (slopes := _slopes(gaussian.problem, names, jnp.asarray(gaussian.mean), x)) is None:
            return gaussian
        of_mean, of_scale = (np.where(seen, np.asarray(s, float), 0.0) for s in slopes)
    covariance = unfitted(of, of_mean[None])
    extra = between(of_mean, covariance) + 2.0 * between(of_scale, covariance**2)
    return _times(gaussian, growth(gaussian.covariance, extra))


def unfitted(of: Correlations, slopes: Float[np.ndarray, "m d *datum"]) -> Data:
    """The covariance R of data, `[2 n]` along an axis of n, of what is left after unknowns with
    these slopes were fitted to each of m alike.

    What is left is r = (1 - P) e with the projection P = U^T U on the slopes, so that
    R = <r r^T> + P R + R P - P R P: R on the right is that of the last time, and all of it a mean
    along the diagonals, as R is the same everywhere."""
    shape, axes = of.products.shape, tuple(range(-of.products.ndim, 0))
    datum = tuple(slice(n // 2) for n in shape)
    flat = np.nan_to_num(slopes).reshape(*slopes.shape[:2], -1)
    _, sizes, basis = np.linalg.svd(flat, full_matrices=False)
    fitted = sizes > FITTED * sizes.max(axis=-1, keepdims=True)
    basis = np.where(fitted[..., None], basis, 0.0)  # U, [m, d or all data, data]
    apart = (*basis.shape[:2], *slopes.shape[2:])
    transformed = np.fft.fftn(basis.reshape(apart), shape, axes)
    covariance = of.covariance
    for _ in range(TIMES):
        spectrum = np.fft.fftn(covariance).real
        there = np.fft.ifftn(spectrum * transformed, axes=axes).real[(..., *datum)]
        within = basis @ np.swapaxes(there.reshape(basis.shape), -1, -2)
        back = there.reshape(basis.shape) - 0.5 * within @ basis
        both = np.conj(transformed) * np.fft.fftn(back.reshape(apart), shape, axes)
        taken = 2.0 * np.fft.ifftn(both.sum(axis=1).mean(axis=0).real).real
        last = covariance
        covariance = of.window * (of.products + taken / np.maximum(of.counts, 1.0))
        if np.abs(covariance - last).max() <= SETTLED * covariance.max():
            break
    return covariance


def growth(
    covariance: Float[np.ndarray, "*some d d"], extra: Float[np.ndarray, "*some d d"]
) -> Float[np.ndarray, "*some d"]:
    """By how much errors grow, of a covariance H^-1 and `extra` = J^T (R - 1) J; 1 where they
    would not."""
    variance = np.einsum("...ii->...i", covariance)
    more = np.einsum("...ij,...jk,...ki->...i", covariance, extra, covariance)
    with np.errstate(invalid="ignore", divide="ignore"):
        factors = np.sqrt((variance + more) / variance)
    return np.where(factors > 1.0, factors, 1.0)


def between(slopes: Float[np.ndarray, "..."], covariance: Data) -> np.ndarray:
    """J^T (R - 1) J, `[..., d, d]`, of slopes J and R by its values at all lags, `[2 n]` along an
    axis of n: of squares of normal numbers, whose covariance is 2 R^2, half of what it is."""
    rank = covariance.ndim
    axes, datum = tuple(range(-rank, 0)), slopes.shape[-rank:]
    spectrum = np.maximum(np.fft.fftn(covariance).real, 0.0)
    there = np.fft.ifftn(spectrum * np.fft.fftn(slopes, covariance.shape, axes), axes=axes).real
    there = there[(..., *(slice(n) for n in datum))]
    flat, there = (a.reshape(*a.shape[:-rank], -1) for a in (slopes, there))
    return flat @ np.swapaxes(there - flat, -1, -2)


def _times(gaussian: Laplace, factors: Float[np.ndarray, "d"]) -> Laplace:
    """With errors that are so much larger."""
    owner = Coordinates(gaussian.problem, gaussian.names).owner
    covariance = gaussian.covariance * np.outer(factors, factors)
    draws = gaussian.draws
    if draws is not None:
        middle = draws.mean(axis=0)
        draws = middle + factors * (draws - middle)
    vague = np.sqrt(np.diag(covariance)) > PRIOR_RULES * gaussian.prior_sd
    return dataclasses.replace(
        gaussian,
        covariance=covariance,
        draws=draws,
        grown={n: float(factors[owner == n].max()) for n in gaussian.names},
        identified={n: ok and not vague[owner == n].any() for n, ok in gaussian.identified.items()},
    )


def _slopes(problem: InverseProblem, names, mean: Array, x):
    """Of the mean, in standard deviations, and of the logarithm of a normal law's, `[d, *data]`;
    None for laws of which these are not all that the data tell."""
    kind = told_by_moments(problem, x)
    return None if kind is None else _moments(problem, names, mean, x, kind == NORMAL)


def told_by_moments(problem: InverseProblem, x) -> str | None:
    """Whether data are normal or counts; None for other laws."""
    law = eqx.filter_eval_shape(lambda p: p.noise(p.forward(x)), problem)
    return NORMAL if _is(law, dist.Normal) else COUNTS if _is(law, dist.Poisson) else None


def _is(law: dist.Distribution, kind: type) -> bool:
    """Also of all parts of joint data."""
    if isinstance(law, JointLaw):
        return all(_is(part, kind) for part in law.laws.values())
    return isinstance(getattr(law, "base_dist", law), kind)


@eqx.filter_jit
def _moments(problem: InverseProblem, names, mean: Array, x, normal: bool):
    coordinates = Coordinates(problem, names)
    return slopes_of(lambda m: coordinates.at(m), mean, x, normal)


def mean_and_sd(problem: InverseProblem, x) -> tuple[Array, Array]:
    """Of the law of the data, a number for each."""
    law = problem.noise(problem.forward(x))
    return jnp.broadcast_to(law.mean, law.shape()), jnp.broadcast_to(
        jnp.sqrt(law.variance), law.shape()
    )


def slopes_of(at: Callable[[Array], InverseProblem], mean: Array, x, normal: bool):
    """Of the mean of the data, in their standard deviations, and of the logarithm of these if they
    are `normal`, `[d, *data]`."""

    def moments(m):
        return mean_and_sd(at(m), x)

    _, sd = moments(mean)
    scale = jnp.where(sd > 0, sd, jnp.inf)

    def along(direction):
        _, (of_mean, of_sd) = jax.jvp(moments, (mean,), (direction,))
        return of_mean / scale, of_sd / scale if normal else jnp.zeros_like(of_sd)

    return jax.lax.map(along, jnp.eye(mean.size, dtype=mean.dtype))
