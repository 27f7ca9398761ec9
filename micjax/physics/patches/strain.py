"""Strain of grains: how the lattice of one differs from that of another, from their reflections.

A reflection g of a grain is where its Fourier transform over the grain, |sum w f exp(-2 pi i g r)|,
is largest: the estimate of greatest likelihood for a wave in white noise (Rife & Boorstyn 1974),
whose error falls with the size of the grain to the power of two. Two lattices are compared by the
linear map that takes the reflections of one to those of the other.
"""

from typing import NamedTuple

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float

STEPS = 6  # of Newton's method, which doubles the digits with each
FEWEST = 3  # reflections; two leave nothing to tell an error from
OUTLIER = 3.0  # times the median distance from where the others say


class Strain(NamedTuple):
    """Against another grain; axes are (y, x) of the image."""

    matrix: Float[np.ndarray, "2 2"]  # symmetric, positive where the lattice is longer
    sd: Float[np.ndarray, "2 2"]
    turn_rad: float  # from x towards y
    turn_sd_rad: float


NONE = Strain(np.zeros((2, 2)), np.zeros((2, 2)), 0.0, 0.0)
UNKNOWN = Strain(np.full((2, 2), np.nan), np.full((2, 2), np.nan), np.nan, np.nan)


def refined(
    image: Float[np.ndarray, "h w"],
    weights: Float[np.ndarray, "h w"],
    cycles: Float[np.ndarray, "j 2"],
) -> tuple[Float[np.ndarray, "j 2"], Float[np.ndarray, "j"]]:
    """The maxima next to `cycles` (ky, kx, in cycles a pixel), and the amplitudes there.

    `weights` are zero outside of the grain. A maximum farther than half the width of the grain's
    own spectrum is that of another reflection and is not followed: its amplitude is zero.
    """
    rows, columns = (np.flatnonzero(weights.any(axis=a)) for a in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    w = np.asarray(weights[box], float)
    place = [np.arange(n, dtype=float) for n in w.shape]
    total = w.sum()
    centre = [(w.sum(axis=1 - i) * p).sum() / total for i, p in enumerate(place)]
    y, x = (p - c for p, c in zip(place, centre, strict=True))
    values = w * (image[box] - (w * image[box]).sum() / total)
    # half a turn over twice the standard deviation of the grain
    size = [np.sqrt((w.sum(axis=1 - i) * p**2).sum() / total) for i, p in enumerate((y, x))]
    reach = 0.25 / np.array(size)
    maxima = np.array(cycles, float)
    for _ in range(STEPS):
        slope, curvature, amplitude = _logarithm(values, y, x, maxima)
        step = np.linalg.solve(curvature, slope[..., None])[..., 0]
        maxima = maxima + np.clip(step, -0.25 * reach, 0.25 * reach)
    followed = np.all(np.abs(maxima - cycles) < reach, axis=1)
    return maxima, np.where(followed, amplitude / total, 0.0)


def _logarithm(values, y, x, cycles):
    """Gradient and negative curvature of log |S|^2 at each of `cycles`, and |S|."""
    down = np.exp(-2j * np.pi * np.outer(cycles[:, 0], y))
    across = np.exp(-2j * np.pi * np.outer(cycles[:, 1], x))
    partial = [(down * y**n) @ values for n in range(3)]

    def moment(n, m):
        return np.sum(partial[n] * across * x**m, axis=1)

    whole = moment(0, 0)
    safe = np.where(np.abs(whole) > 0.0, whole, 1.0)
    first = np.stack([moment(1, 0), moment(0, 1)], axis=-1) / safe[:, None]
    second = np.stack([moment(2, 0), moment(1, 1), moment(1, 1), moment(0, 2)], axis=-1)
    second = (second / safe[:, None]).reshape(-1, 2, 2)
    spread = (second - first[:, :, None] * first[:, None, :]).real
    # beyond the inflection the step is that of a wave without noise, uphill in any case
    spread_of_grain = np.diag([np.mean(y**2), np.mean(x**2)])
    convex = np.linalg.eigvalsh(spread)[:, 0] < 0.1 * spread_of_grain.diagonal().min()
    spread = np.where(convex[:, None, None], spread_of_grain, spread)
    return 4.0 * np.pi * first.imag, 8.0 * np.pi**2 * spread, np.abs(whole)


def between(
    cycles: Float[np.ndarray, "j 2"],
    reference: Float[np.ndarray, "j 2"],
    weights: Float[np.ndarray, "j"],
) -> Strain:
    """Of a lattice against another one, from the same reflections of both.

    Errors are those of the scatter about the linear map, outliers left out. All is NaN for fewer
    than three reflections, for those of one line, and where more than a quarter are outliers: two
    grains that were taken as one have no lattice.
    """
    used = np.array(weights > 0.0)
    fewest = max(FEWEST, int(np.ceil(0.75 * used.sum())))
    while True:
        g, r, w = cycles[used], reference[used], weights[used]
        normal = (r * w[:, None]).T @ r
        if used.sum() < fewest or np.linalg.cond(normal) > 1e4:
            return UNKNOWN
        inverse = np.linalg.inv(normal)
        of_reciprocal = ((g * w[:, None]).T @ r) @ inverse  # g ~ F r
        left = np.sqrt(weights) * np.linalg.norm(cycles - reference @ of_reciprocal.T, axis=1)
        # one that was lost to a neighbour would turn all the others
        wrong = used & (left > OUTLIER * np.median(left[used]))
        if not wrong.any():
            break
        used[np.argmax(np.where(wrong, left, 0.0))] = False
    scatter = np.sum(left[used] ** 2) / (2 * used.sum() - 4)
    deformation = np.linalg.inv(of_reciprocal).T
    u, stretches, v = np.linalg.svd(deformation)
    turn = u @ v
    matrix = u @ np.diag(stretches) @ u.T - np.eye(2)
    # F is near a rotation: its error, turned, is minus that of the strain and of the angle
    sd_along = np.sqrt(scatter * np.diag(turn @ inverse @ turn.T))
    shear = 0.5 * np.hypot(*sd_along)
    sd = np.array([[sd_along[0], shear], [shear, sd_along[1]]])
    return Strain(matrix, sd, float(np.arctan2(turn[0, 1], turn[0, 0])), float(shear))


def strains(
    parts: list[tuple[Float[np.ndarray, "_ _"], Bool[np.ndarray, "_ _"]]],
    angles_rad: list[float],
    cycles: Float[np.ndarray, "j 2"],
    rim_px: float,
    core_px: float,
) -> list[Strain]:
    """Of each grain against the first one, whose reflections `cycles` are known roughly.

    **Arguments:**

    - `parts`: the image around each grain, and where the grain is.
    - `angles_rad`: of each grain, roughly.
    - `rim_px`: what is so near to the border of a grain is left out, where there is more.
    - `core_px`: reflections are first looked for in a disc of this radius, in which they are wide,
        and then in wider ones.

    **Raises:** `ValueError` for a grain without a pixel.
    """
    if empty := [i for i, (_, grain) in enumerate(parts) if not grain.any()]:
        raise ValueError(f"of {len(parts)} grains those numbered {empty} have no pixel")
    reference, strength = _followed(*parts[0], cycles, None, rim_px, core_px)
    result = [NONE]
    for part, angle in zip(parts[1:], angles_rad[1:], strict=True):
        c, s = np.cos(angle - angles_rad[0]), np.sin(angle - angles_rad[0])
        turned = reference @ np.array([[c, s], [-s, c]]).T  # (ky, kx), from x towards y
        maxima, amplitude = _followed(*part, turned, reference, rim_px, core_px)
        weights = np.where((amplitude > 0.0) & (strength > 0.0), strength, 0.0) ** 2
        result.append(between(maxima, reference, weights))
    return result


def _followed(image, grain, cycles, reference, rim_px: float, core_px: float):
    """Refined in ever wider discs; a reflection that is lost in one is where the others say."""
    depth = scipy.ndimage.distance_transform_edt(np.pad(grain, 1))[1:-1, 1:-1]
    inner = depth > min(rim_px, 0.5 * depth.max())
    away = np.ones(grain.shape, bool)
    away[np.unravel_index(depth.argmax(), depth.shape)] = False
    away = scipy.ndimage.distance_transform_edt(away)
    radius, begun = core_px, cycles
    while True:
        disc = away <= radius
        maxima, amplitude = refined(image, (inner & disc).astype(float), begun)
        if disc[inner].all():
            return maxima, amplitude
        begun = np.where(amplitude[:, None] > 0.0, maxima, begun)
        if reference is not None and (amplitude > 0.0).sum() >= FEWEST:
            strong = amplitude > 0.0
            solved = np.linalg.lstsq(reference[strong], maxima[strong], rcond=None)[0]
            begun = reference @ solved
        radius *= 2.0
